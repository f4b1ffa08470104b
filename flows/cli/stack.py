"""The commands about the stack: `rlhf up`, `down`, `status`, `doctor`, `backup` and `restore`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.runs import Home, show_runs

if TYPE_CHECKING:
    from rich.table import Table

    from flows.stack.stack import ServerStatus


def up(
    profile: Annotated[
        Literal["default", "production"] | None, typer.Option(help="production: on PostgreSQL, behind passwords.")
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Workers for the pools train and ops, too.")] = False,
    home: Home = None,
) -> None:
    """Start the Prefect, MLflow and Label Studio servers that do not run yet, and wait until they work.

    Profile and workers are remembered. --profile production has workers always.
    """
    from rich.console import Console

    from flows.stack import stack

    console = Console()
    started = time.monotonic()
    with console.status("starting the servers; Label Studio's first start takes half a minute or more"):
        running = stack.up(home, profile, workers)
    for note in running.notes:
        console.print(f"note: {note}")
    console.print(status_table(stack.status(home)))
    seconds = time.monotonic() - started
    console.print(f"ready after {seconds:.0f} s; passwords are in {running.home / 'credentials.json'}", soft_wrap=True)


def down(home: Home = None) -> None:
    """Stop exactly the servers that `rlhf up` started."""
    from flows.stack import stack

    stopped = stack.down(home)
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status(home: Home = None) -> None:
    """Show the servers, work pools, and runs that wait, run or died; exit code 1 when a server does not work."""
    from rich.console import Console

    from flows.stack import stack

    rows, console = stack.status(home), Console()
    console.print(status_table(rows))
    show_runs(console, home, prefect_answers=any(row.name == "prefect" and row.health.ok for row in rows))
    if not all(row.health.ok for row in rows):
        raise typer.Exit(1)


def backup(out: Annotated[Path, typer.Argument(help="A directory that is not there yet.")], home: Home = None) -> None:
    """Copy all databases and files of the stack, which may be in use, into a directory, with the digest of each."""
    from flows.operations.backup import backup as make

    typer.echo(f"{len(make(out, home).files)} files are in {out}")


def restore(source: Annotated[Path, typer.Argument(help="What `rlhf backup` made.")], home: Home = None) -> None:
    """Make the stack of a backup in a home that holds nothing; then `rlhf up` starts it."""
    from flows.home import home_directory
    from flows.operations.backup import restore as make

    made = make(source, home)
    typer.echo(f"the stack of {made.made_at} is in {home_directory(home)}; `rlhf up` starts it")


def doctor(home: Home = None) -> None:
    """Check versions, disk, memory, credentials, ports and servers, and say what to do; exit code 1 when one fails."""
    from rich.console import Console
    from rich.table import Table

    from flows.operations.doctor import examine

    found = examine(home)
    table = Table("check", "", "seen", "what to do")
    for one in found:
        table.add_row(one.what, "[green]well[/green]" if one.ok else "[red]not well[/red]", one.seen, one.fix)
    Console().print(table)
    if not all(one.ok for one in found):
        raise typer.Exit(1)


def status_table(rows: "list[ServerStatus]") -> "Table":
    from rich.table import Table

    table = Table("service", "address", "health", "version", "log in as")
    for row in rows:
        health = "[green]works[/green]" if row.health.ok else f"[red]{row.health.problem}[/red]"
        table.add_row(row.title, row.url, health, row.health.version, row.log_in_as)
    return table
