"""Backup and restore: all databases and files of a stack in one directory, with a digest of each.

Referring data is copied before the data it refers to: the store of annotations, then the databases (MLflow before Label
Studio), then files, which are written once and appear atomically. So servers and runs can continue meanwhile. A backup
gets its final name when it is complete, and a restored stack does not start before the restore is complete.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from alignment.artifacts import PRIVATE, file_digest, write_text
from alignment.records import Record
from flows.home import home_directory
from flows.stack import credentials, postgres, stack, state
from flows.stack.processes import StackError
from flows.stack.services import Profile
from labeling.child_environment import child_environment

MANIFEST = "manifest.json"
UNFINISHED = state.UNFINISHED
ORDER = ("annotations.db", "prefect.db", "mlflow.db", "label_studio.sqlite3")  # SQLite; others are copied first
DUMPED = ("prefect", "mlflow", "label-studio")
EXCLUDED = ("logs", "locks", "postgres", state.FILE, UNFINISHED)  # at the top of a home
TRANSIENT_SUFFIXES = (
    ".partial",
    ".download",
    ".lock",
    "-wal",
    "-shm",
    "-journal",
)  # files that are still being written, and locks


class Manifest(Record):
    """Contents of a backup: digests (SHA-256) by path below the backup, and links by path below the home."""

    made_at: str
    profile: Profile
    workers: bool
    files: dict[str, str]
    links: dict[str, str]


@dataclass(frozen=True)
class Databases:
    """The address of PostgreSQL, and the password of each server's role."""

    address: str
    passwords: dict[str, str]


def backup(out: Path, home: Path | None = None) -> Manifest:
    """Copy the stack in `home` to `out`, which must not exist.

    Raises StackError, also when a production stack's database is not running.
    """
    home = home_directory(home)
    known = credentials.read(home)
    if known is None:
        raise StackError(f"there is no stack in {home}: set its home with --home or RLHF_HOME")
    remembered = state.read(home)
    databases = None
    if remembered.profile == "production":
        site = stack.connect(home, ["postgres"]).site
        databases = Databases(address=site.addresses["postgres"], passwords=site.credentials.secrets.databases)
    return dump(home, out.expanduser().resolve(), databases, remembered)


def dump(home: Path, out: Path, databases: Databases | None, remembered: state.State) -> Manifest:
    """Write a complete backup; PostgreSQL's databases are dumped if given. Raises StackError."""
    if out.exists() or out.is_relative_to(home):
        raise StackError(f"{out} {'exists already' if out.exists() else f'is inside {home}'}: choose another directory")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a backup that was killed
    partial.mkdir(parents=True, mode=0o700)
    links = _copy_home(home, partial, databases)
    files = {str(path.relative_to(partial)): file_digest(path) for path in sorted(partial.rglob("*")) if path.is_file()}
    manifest = Manifest(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        profile=remembered.profile,
        workers=remembered.workers,
        files=files,
        links=links,
    )
    os.sync()
    write_text(partial / MANIFEST, manifest.model_dump_json(indent=1) + "\n", PRIVATE)
    partial.rename(out)
    return manifest


def _copy_home(home: Path, partial: Path, databases: Databases | None) -> dict[str, str]:
    """Copy databases first, then files; returns the links."""
    paths = list(_files_to_copy(home))
    sqlite_files = sorted(
        filter(_is_sqlite, paths), key=lambda path: ORDER.index(path.name) if path.name in ORDER else -1
    )
    for path in sqlite_files:
        _copy_sqlite(path, _with_parent(partial / "home" / path.relative_to(home)))
    if databases is not None:
        for name in DUMPED:
            dump_file = _with_parent(partial / "databases" / f"{name}.dump")
            _run_pg_tool("pg_dump", name, databases, "--format", "custom", "--no-owner", "--file", str(dump_file))
    links = {}
    for path in _files_to_copy(home):
        relative = path.relative_to(home)
        if path.is_symlink():
            links[str(relative)] = str(path.readlink())
        elif not _is_sqlite(path):
            _copy(path, _with_parent(partial / "home" / relative))
    return links


def _files_to_copy(home: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(home):
        names[:] = sorted(name for name in names if _is_included(home, Path(directory, name)))
        entries = [Path(directory, name) for name in (*files, *names)]
        yield from sorted(
            path for path in entries if path.is_symlink() or (path.is_file() and _is_included(home, path))
        )


def _is_included(home: Path, path: Path) -> bool:
    return str(path.relative_to(home)) not in EXCLUDED and not path.name.endswith(TRANSIENT_SUFFIXES)


def _with_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _copy(path: Path, target: Path) -> None:
    try:
        shutil.copy2(path, target)
    except FileNotFoundError:
        if path.exists():
            raise
        target.unlink(missing_ok=True)  # removed meanwhile: same as if removed before the backup


def _is_sqlite(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _copy_sqlite(path: Path, target: Path) -> None:
    """A consistent snapshot of a database that may be in use."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _run_pg_tool(program: str, name: str, databases: Databases, *options: str) -> None:
    """Run a program of PostgreSQL on a server's database. Raises StackError with its error output."""
    host, _, port = databases.address.rpartition(":")
    connection = (
        "--host",
        host,
        "--port",
        port,
        "--username",
        postgres.DATABASES[name],
        "--dbname",
        postgres.DATABASES[name],
        "--no-password",
    )
    environment = {**child_environment("database-client", os.environ), "PGPASSWORD": databases.passwords[name]}
    command = [str(postgres.client(program)), *connection, *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StackError(f"{program} of database {postgres.DATABASES[name]} failed: {result.stderr.strip()}")


def restore(source: Path, home: Path | None = None) -> Manifest:
    """Restore a backup into `home`, which must be empty; `rlhf up` starts the stack.

    Raises StackError for an incomplete backup, before anything is written.
    """
    home = home_directory(home)
    manifest = read_manifest(source)
    _require_empty(home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / UNFINISHED).touch()
    _restore_files(source, home, manifest)
    state.write(home, state.State(profile=manifest.profile, workers=manifest.workers))
    if manifest.profile == "production":
        site = stack.up_database(home)
        databases = Databases(address=site.addresses["postgres"], passwords=site.credentials.secrets.databases)
        _restore_databases(source, databases)
    (home / UNFINISHED).unlink()
    return manifest


def read_manifest(source: Path) -> Manifest:
    """Verify a backup and return its manifest. Raises StackError naming the first file that is missing or changed."""
    try:
        manifest = Manifest.model_validate_json((source / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise StackError(f"{source} is not a complete backup: it has no readable {MANIFEST}") from error
    for name, digest in manifest.files.items():
        if not (source / name).is_file() or file_digest(source / name) != digest:
            raise StackError(f"{source / name} is missing or was changed: use another backup")
    return manifest


def _require_empty(home: Path) -> None:
    existing = next((path for path in home.rglob("*") if not path.is_dir()), None) if home.exists() else None
    if existing is not None:
        raise StackError(f"{home} is not empty (it contains {existing.relative_to(home)}): restore into a new home")


def _restore_files(source: Path, home: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if name.startswith("home/"):
            shutil.copy2(source / name, _with_parent(home / name.removeprefix("home/")))
    for name, target in manifest.links.items():
        _with_parent(home / name).symlink_to(target)


def _restore_databases(source: Path, databases: Databases) -> None:
    """Load the dumps into empty databases, each in one transaction. Raises StackError."""
    for name in DUMPED:
        role = postgres.DATABASES[name]
        with postgres.connect(databases.address, databases.passwords[name], role) as connection:
            if connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public' LIMIT 1").fetchone():
                raise StackError(f"database {role} is not empty: restore before its server is started")
        _run_pg_tool(
            "pg_restore",
            name,
            databases,
            "--no-owner",
            "--exit-on-error",
            "--single-transaction",
            str(source / "databases" / f"{name}.dump"),
        )


def main() -> None:
    """`python -m flows.operations.backup dump|restore DIRECTORY`, for containers: RLHF_HOME, PGHOST, passwords."""
    home, (action, argument) = home_directory(), sys.argv[1:]
    address = f"{os.environ['PGHOST']}:{os.environ.get('PGPORT', '5432')}"
    databases = Databases(address=address, passwords=postgres.passwords_from(os.environ))
    if action == "dump":
        manifest = dump(home, Path(argument), databases, state.State(profile="production"))
    elif action == "restore":
        manifest = read_manifest(Path(argument))
        _require_empty(home)
        _restore_databases(Path(argument), databases)
        _restore_files(Path(argument), home, manifest)
    else:
        raise SystemExit(f"'{action}': use dump or restore, and a directory")
    print(f"{action}: {len(manifest.files)} files of {manifest.made_at}")


if __name__ == "__main__":
    main()
