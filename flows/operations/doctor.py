"""`rlhf doctor`: checks of the machine, the installation and the stack.

Checks are read-only. Each failure comes with a fix.
"""

import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import httpx
import psutil
from packaging.requirements import Requirement

from flows.disk import LOW_BYTES
from flows.home import home_directory, open_to_others
from flows.locks import held_locks
from flows.operations.manifest import KEY_FILE
from flows.stack import health, postgres, processes, services, stack, state
from flows.stack.databases import TABLES, damage
from flows.stack.processes import StackError
from flows.stack.services import HOST, NAMES, TITLES

DISTRIBUTION = "rlhf-flows"
LABEL_STUDIO = "1.23"
MEMORY_GIB = 2.0  # a rule of thumb
CLOCK_SECONDS = 60.0
STALE_DAYS = 7.0
GIB = 1 << 30
DISK_GIB = LOW_BYTES / GIB


@dataclass(frozen=True)
class Finding:
    """The result of a check: its subject, whether it passed, what was observed, and the fix."""

    what: str
    ok: bool
    seen: str
    fix: str = ""


def run_checks() -> list[Finding]:
    """Run all checks that need no server."""
    home = home_directory()
    machine = [python(), packages(), label_studio(), *postgresql(home), disk(home), memory()]
    return [*machine, *secrets(home), *ports(), *servers(home), *databases(home), *leftovers(home)]


def python() -> Finding:
    """The version of Python; one that is too old fails before this check."""
    return Finding(what="Python", ok=True, seen=sys.version.split()[0])


def packages(distribution: str = DISTRIBUTION) -> Finding:
    """The required packages, in compatible versions."""
    try:
        requirements = [Requirement(line) for line in requires(distribution) or []]
    except PackageNotFoundError:
        return Finding(what="packages", ok=False, seen=f"{distribution} is not installed", fix="make setup")
    applicable = [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    wrong = []
    for requirement in applicable:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    seen = "; ".join(wrong) or f"{len(applicable)} as required"
    return Finding(what="packages", ok=not wrong, seen=seen, fix="make setup" if wrong else "")


def label_studio() -> Finding:
    """Label Studio in its own environment, in the version that the screens support."""
    what = "Label Studio's program"
    try:
        program = services.label_studio_executable()
    except StackError as error:
        return Finding(what=what, ok=False, seen="not installed", fix=str(error))
    versions = [
        path.name.split("-")[1] for path in program.parent.parent.glob("lib/python*/site-packages/label_studio-*")
    ]
    seen = versions[0].removesuffix(".dist") if versions else "unknown version"
    ok = seen == LABEL_STUDIO or seen.startswith(LABEL_STUDIO + ".")
    fix = "" if ok else f"install version {LABEL_STUDIO} in {program.parent.parent}, or remove it and run `make setup`"
    return Finding(what=what, ok=ok, seen=seen, fix=fix)


def postgresql(home: Path) -> Iterator[Finding]:
    """PostgreSQL's programs, for a production stack."""
    try:
        if state.read(home).profile != "production":
            return
        directory = postgres.programs()
        postgres.client("pg_dump")
        yield Finding(what="PostgreSQL's programs", ok=True, seen=str(directory))
    except StackError as error:
        yield Finding(what="PostgreSQL's programs", ok=False, seen="not usable", fix=str(error))


def disk(home: Path) -> Finding:
    """Free disk space for the outputs of a run."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    free, writable = shutil.disk_usage(existing).free / GIB, os.access(existing, os.W_OK)
    ok = free >= DISK_GIB and writable
    seen = f"{free:.0f} GiB free at {existing}" + ("" if writable else ", which is not writable")
    fix = "" if ok else f"free {DISK_GIB:.0f} GiB, or choose another directory with RLHF_HOME"
    return Finding(what="disk", ok=ok, seen=seen, fix=fix)


def memory() -> Finding:
    """Available memory for the servers and a run."""
    free = psutil.virtual_memory().available / GIB
    ok = free >= MEMORY_GIB
    fix = "" if ok else f"end other programs until {MEMORY_GIB:.0f} GiB are available"
    return Finding(what="memory", ok=ok, seen=f"{free:.1f} GiB available", fix=fix)


def secrets(home: Path) -> Iterator[Finding]:
    """The home and its credentials: for their owner only."""
    if open_to_others(home):
        mode = stat.S_IMODE(home.stat().st_mode)
        fix = f"chmod 700 {home}, or another home with --home: judgements, logs and locks are in it"
        yield Finding(what="home", ok=False, seen=f"other accounts may enter it (mode {mode:o})", fix=fix)
    for path in (home / "credentials.json", home / "annotators.json", home / KEY_FILE):
        if path.exists():
            mode = stat.S_IMODE(path.stat().st_mode)
            ok = mode & 0o077 == 0
            yield Finding(what=path.name, ok=ok, seen=f"mode {mode:o}", fix="" if ok else f"chmod 600 {path}")


def ports() -> Iterator[Finding]:
    """Port variables without a valid port."""
    for name, value in sorted(os.environ.items()):
        if re.fullmatch(r"RLHF_\w+_PORT", name) and not (value.isdigit() and 1 <= int(value) <= 65535):
            fix = f"set {name} to a number from 1 to 65535, or unset it"
            yield Finding(what=name, ok=False, seen=f"{value!r} is not a port", fix=fix)


def databases(home: Path) -> Iterator[Finding]:
    """The SQLite files of the home: with content, intact pages and the tables of their program."""
    for path in sorted([*home.glob("*.db"), *home.glob("*/*.db"), *home.glob("*/*.sqlite3")]):
        name = path.relative_to(home).as_posix()
        if problem := damage(path, TABLES.get(name, "")):
            fix = "`rlhf down`, then restore a backup (`rlhf restore`), or move the file away"
            yield Finding(what=name, ok=False, seen=problem, fix=fix)


def leftovers(home: Path) -> Iterator[Finding]:
    """Unfinished outputs that were not resumed for a week."""
    held, old = held_locks(home), time.time() - STALE_DAYS * 86_400
    partial = [path for path in (home / "artifacts").glob("*.*") if path.name.partition(".")[0] not in held]
    stale = [path for path in partial if path.lstat().st_mtime < old]
    if stale:
        seen = f"{len(stale)} unfinished outputs, such as {stale[0].name}"
        fix = "the same `rlhf run` resumes them; `rlhf gc` lists what can be removed"
        yield Finding(what="artifacts", ok=True, seen=seen, fix=fix)


def servers(home: Path) -> Iterator[Finding]:
    """Health and clock of the servers that run; free ports of those that do not."""
    try:
        rows = stack.status(home)
    except StackError as error:
        yield Finding(what="stack", ok=False, seen="its files or variables cannot be read", fix=str(error))
        return
    for row in rows:
        name = row.name
        if row.running:
            offset = clock_difference(row.url) if row.health.ok and name in NAMES else 0.0
            if not row.health.ok:
                fix = f"see {row.log}; `rlhf down` and `rlhf up` restart it"
                if row.log is None:
                    fix = f"check {health.ADDRESSES[name]}"
                yield Finding(what=row.title, ok=False, seen=row.health.problem, fix=fix)
            elif abs(offset) > CLOCK_SECONDS:
                fix = "synchronise the clocks (NTP): annotations are fetched by their time"
                yield Finding(what=row.title, ok=False, seen=f"its clock is {offset:+.0f} s from ours", fix=fix)
            else:
                yield Finding(what=row.title, ok=True, seen=f"works at {row.url}")
            continue
        port = os.environ.get(services.port_variable(name), "")
        if port.isdigit() and not processes.port_is_free(HOST, int(port)):
            fix = f"free port {port}, or unset {services.port_variable(name)}"
            yield Finding(what=TITLES[name], ok=False, seen=f"not running, and its port {port} is busy", fix=fix)
        else:
            yield Finding(what=TITLES[name], ok=True, seen="not running; `rlhf up` starts it")


def clock_difference(url: str) -> float:
    """Seconds by which a server's clock is ahead of ours, from the Date header of a response; 0 without one."""
    try:
        response = httpx.get(url, timeout=health.PROBE_SECONDS)
        server_time = parsedate_to_datetime(response.headers["date"])
    except (httpx.HTTPError, KeyError, ValueError):
        return 0.0
    if server_time.tzinfo is None:  # "-0000": UTC, from a server without a time zone
        server_time = server_time.replace(tzinfo=UTC)
    return (server_time - datetime.now(UTC)).total_seconds()
