"""`rlhf up`, `down`, `status`, `backup` and `restore`: the stack as a whole."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from flows import run_cli

if TYPE_CHECKING:
    from flows.stack import ServerStatus

Home = Annotated[
    Path | None, typer.Option("--home", help="Where the stack lives: RLHF_HOME, else ./.rlhf", show_default=False)
]


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
    from flows import stack

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
    from flows import stack

    stopped = stack.down(home)
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status(home: Home = None) -> None:
    """Show the servers, work pools, and runs that wait, run or died; exit code 1 when a server does not work."""
    from flows import stack

    rows = stack.status(home)
    Console().print(status_table(rows))
    run_cli.show_runs(Console(), home, prefect_answers=any(row.name == "prefect" and row.health.ok for row in rows))
    if not all(row.health.ok for row in rows):
        raise typer.Exit(1)


def backup(out: Annotated[Path, typer.Argument(help="A directory that is not there yet.")], home: Home = None) -> None:
    """Copy all databases and files of the stack, which may be in use, into a directory, with the digest of each."""
    from flows.backup import backup as make

    typer.echo(f"{len(make(out, home).files)} files are in {out}")


def restore(
    source: Annotated[Path, typer.Argument(help="What `rlhf backup` made.")], home: Home = None
) -> None:
    """Make the stack of a backup in a home that holds nothing; then `rlhf up` starts it."""
    from flows.backup import restore as make
    from flows.stack import home_directory

    made = make(source, home)
    typer.echo(f"the stack of {made.made_at} is in {home_directory(home)}; `rlhf up` starts it")


def status_table(rows: "list[ServerStatus]") -> Table:
    """How each part of the stack is."""
    table = Table("service", "address", "health", "version", "log in as")
    for row in rows:
        health = "[green]works[/green]" if row.health.ok else f"[red]{row.health.problem}[/red]"
        table.add_row(row.title, row.url, health, row.health.version, row.log_in_as)
    return table
