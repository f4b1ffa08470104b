"""`rlhf logs` and `rlhf gc`: the logs of runs, and files that are no longer needed."""

import json
from typing import Annotated

import typer
from rich.filesize import decimal

from flows.cli.common import print_table, queries
from flows.console import console, echo
from flows.stack.environment import waiting
from flows.tracking.logs import as_text, find_log, first_line, read_log


def logs(
    run: Annotated[
        str,
        typer.Argument(help="Prefix of the run's id in MLflow or Prefect, or a recipe; by default your newest run."),
    ] = "",
    stage: Annotated[str, typer.Option(help="Only lines of this stage.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Print the log of a run, from its file under logs/runs in the home."""
    path = find_log(run)
    line = first_line(path)
    shown = f"{line.get('recipe', 'run')} {path.stem}, since {str(line.get('time', '?'))[:19].replace('T', ' ')} UTC"
    echo(f"rlhf: the log of {shown}", err=True)
    try:
        for line in read_log(path, stage, lambda: follow):
            echo(json.dumps(line, ensure_ascii=False) if as_json else as_text(line), lines=True)
    except KeyboardInterrupt:
        return


def gc(
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0.0, help="Keep files used within this many days.")
    ] = 30,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also versions of models without an alias and in no release.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; without it, a dry run.")] = False,
) -> None:
    """List files that no registered version, release or running stage needs; with --yes remove them."""
    with queries("mlflow"):
        from flows.operations import gc as collection

        items = collection.plan(older_than, superseded=superseded)
    print_table(["kind", "what", "size", "why"], [(i.kind, i.place, decimal(i.size), i.why) for i in items])
    out, total = console(), decimal(sum(item.size for item in items))
    if not items or not yes:
        out.print(f"{len(items)} items, {total}{'; `rlhf gc --yes` removes them' if items else ''}")
        return
    with waiting("removing files"):
        problems = collection.remove_items(items)
    for problem in problems:
        out.print(f"kept: {problem}", markup=False, soft_wrap=True)
    path = collection.write_removal_log(items)
    removed = len(items) - len(problems)
    out.print(f"{removed} of {len(items)} items removed, {total} at most; the list is {path}")
    if problems:
        raise typer.Exit(1)
