"""The commands for the stack: `rlhf up`, `down`, `status`, `doctor`, `backup` and `restore`."""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from flows.cli.common import BAD, GOOD, print_table, queries
from flows.console import console, echo
from flows.deployments.rows import last_known
from flows.disk import full_disk, home_or_here, nearly_full
from flows.home import home_directory
from flows.operations import backup as backups
from flows.operations import restore as restores
from flows.operations.doctor import run_checks
from flows.operations.manifest import KEY_FILE
from flows.stack import stack
from flows.stack.environment import waiting
from flows.stack.processes import StackError
from flows.stack.stack import ServerStatus

REGISTRY = "#/models?workflowType=machine_learning"  # without it MLflow's pages open in a mode that hides the registry


def up(
    profile: Annotated[
        Literal["default", "production"] | None, typer.Option(help="production: on PostgreSQL, with passwords.")
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Also start workers for the pools train and ops.")] = False,
) -> None:
    """Start the Prefect, MLflow and Label Studio servers that are not running, and wait until they answer.

    Profile and workers are remembered. --profile production always has workers.
    """
    out = console()
    started = time.monotonic()
    starting = "starting the servers; Label Studio's first start takes half a minute or more"
    with out.status(starting) if out.is_terminal else waiting(starting):
        running = stack.up(None, profile, workers)
    for note in running.notes:
        out.print(f"note: {note}")
    print_servers(stack.status())
    print_entrance()
    seconds = time.monotonic() - started
    out.print(f"ready after {seconds:.0f} s; passwords are in {running.home / 'credentials.json'}", soft_wrap=True)


def down() -> None:
    """Stop the servers that `rlhf up` started, and no other process."""
    stopped = stack.down()
    echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status() -> None:
    """Show servers, work pools, and waiting, running and dead runs; exit code 1 when a server is unhealthy."""
    with waiting("waiting for the servers"):
        servers = stack.status()
    print_servers(servers)
    print_registry(servers)
    prefect_answers = any(server.name == "prefect" and server.health.ok for server in servers)
    if prefect_answers:
        print_entrance()
    print_runs(prefect_answers=prefect_answers)
    if nearly_full(home_or_here()):
        raise full_disk(home_or_here(), "servers fail with so little")
    if not all(server.health.ok for server in servers):
        raise typer.Exit(1)


def doctor() -> None:
    """Check versions, disk, memory, credentials, ports and servers, with a fix for each failure.

    The exit code is 1 when a check fails.
    """
    with waiting("checking this machine and the servers"):
        findings = run_checks()
    try:
        with queries("prefect"):
            from flows.deployments.overview import check_pools

            findings += check_pools()
    except StackError:
        pass  # the checks of the servers report it already
    print_table(
        ["check", "", "seen", "what to do"],
        [(finding.what, _verdict(finding.ok, "ok", "failed"), finding.seen, finding.fix) for finding in findings],
    )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def backup(
    out: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key that signs the backup; backup.key in the home by default.")
    ] = None,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Encrypt with the password in RLHF_BACKUP_PASSWORD, or ask for one.")
    ] = False,
) -> None:
    """Copy all databases and files of the stack into a directory, signed. The stack may be running."""
    manifest = backups.backup(out, key=key, password=partial(_password, confirm=True) if encrypt else None)
    for note in manifest.notes:
        echo(f"note: {note}", err=True)
    echo(f"{len(manifest.files)} files are in {out}")
    where = key or home_directory() / KEY_FILE
    echo(f"keep a copy of {where} elsewhere: `rlhf restore {out} --key FILE` needs it")


def restore(
    source: Annotated[Path, typer.Argument(help="A directory that `rlhf backup` wrote.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="backup.key of the home that the backup was made from.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Do not check who made the backup, only whether it is complete.")
    ] = False,
) -> None:
    """Restore a backup into an empty home; then `rlhf up` starts the stack."""
    with waiting("copying and checking the backup"):
        manifest = restores.restore(source, key=key, trust=trust, password=_password)
    if trust:
        echo("note: it was not checked who made this backup, and its deployments can run commands", err=True)
    echo(f"the stack of {manifest.made_at.isoformat()} is in {home_directory()}; `rlhf up` starts it")


def _password(confirm: bool = False) -> str:
    """The password of encrypted backups, from the environment, or asked for at a terminal."""
    if backups.PASSWORD not in os.environ and sys.stdin.isatty():
        return str(typer.prompt("password of the backup", hide_input=True, confirmation_prompt=confirm))
    return backups.environment_password()


def print_servers(servers: Sequence[ServerStatus]) -> None:
    """Address, health, version and account of each server."""
    print_table(
        ["service", "address", "health", "version", "log in as"],
        [
            (s.title, s.url, _verdict(s.health.ok, "works", s.health.problem), s.health.version, s.log_in_as)
            for s in servers
        ],
    )


def print_registry(servers: Sequence[ServerStatus]) -> None:
    """The address of MLflow's registry, if MLflow works."""
    for server in servers:
        if server.name == "mlflow" and server.health.ok:
            echo(f"MLflow's registry opens with {server.url}/{REGISTRY}")


def print_entrance() -> None:
    """The links into the pages of Prefect, which works once, and of Label Studio."""
    if link := stack.entrance_link():
        echo(f"Prefect's pages open with {link} (once, within ten minutes)")
    if link := stack.pages_link():
        echo(f"Label Studio's pages open with {link}")


def print_runs(*, prefect_answers: bool) -> None:
    """Work pools and runs; while Prefect does not answer, the waiting runs as of the last check."""
    if prefect_answers:
        with queries("prefect"):
            from flows.deployments import overview

            tables = overview.tables()
    else:
        tables = [("waiting run, as last seen", last_known())]
    for title, rows in tables:
        if rows:
            print_table([title, "state", "seen", "next"], [(row.name, row.state, row.seen, row.next) for row in rows])


def _verdict(ok: bool, good: str, bad: str) -> Text:
    return Text(good, style=GOOD) if ok else Text(bad, style=BAD)
