"""`rlhf logs` and `rlhf gc`: what runs said, and what may go."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flows.operations.gc import Item


def logs(
    run: Annotated[str, typer.Argument(help="How the run's id in MLflow or Prefect begins; the newest if none.")] = "",
    stage: Annotated[str, typer.Option(help="Only what was said in this stage.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is said until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are, as JSON.")] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where the stack lives.", show_default=False)] = None,
) -> None:
    """Print what a run said, from its file under logs/runs in the home."""
    from flows.tracking.logs import as_text, find_log, read_log

    path = find_log(run, home)
    try:
        for line in read_log(path, stage, lambda: follow):
            typer.echo(json.dumps(line, ensure_ascii=False) if as_json else as_text(line))
    except KeyboardInterrupt:
        return


def gc(
    older_than: Annotated[float, typer.Option(metavar="DAYS", min=0.0, help="Leave what was used in this time.")] = 30,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also versions of models without an alias and in no release.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is touched.")] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where the stack lives.", show_default=False)] = None,
) -> None:
    """Show what takes room and is needed by no registered version, release or running stage; with --yes remove it."""
    from flows.stack.stack import connect

    os.environ.update(connect(home, ["mlflow"]).environment())
    from rich.console import Console
    from rich.filesize import decimal

    from flows.operations import gc as collection

    found = collection.plan(home, older_than, superseded=superseded)
    console, total = Console(), decimal(sum(item.size for item in found))
    console.print(_table(found))
    if not found or not yes:
        console.print(f"{len(found)} things, {total}{'; `rlhf gc --yes` removes them' if found else ''}")
        return
    left = collection.carry_out(found, home)
    for words in left:
        console.print(f"left: {words}", markup=False, soft_wrap=True)
    written = collection.note(home, found)
    console.print(f"{len(found) - len(left)} of {len(found)} things removed, {total} at most; the list is {written}")
    if left:
        raise typer.Exit(1)


def _table(found: "list[Item]") -> Any:
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table("kind", "what", "size", "why")
    for item in found:
        table.add_row(item.kind, Text(item.place, overflow="fold"), decimal(item.size), item.why)
    return table
