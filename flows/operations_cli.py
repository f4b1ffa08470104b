"""`rlhf logs` and `rlhf gc`: what runs said, and what may go."""

import json
from pathlib import Path
from typing import Annotated

import typer


def logs(
    run: Annotated[str, typer.Argument(help="How the run's id in MLflow or Prefect begins; the newest if none.")] = "",
    stage: Annotated[str, typer.Option(help="Only what was said in this stage.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is said until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they are, as JSON.")] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where the stack lives.", show_default=False)] = None,
) -> None:
    """Print what a run said, from its file under logs/runs in the home."""
    from flows.logs import as_text, find_log, read_log

    path = find_log(run, home)
    try:
        for line in read_log(path, stage, lambda: follow):
            typer.echo(json.dumps(line, ensure_ascii=False) if as_json else as_text(line))
    except KeyboardInterrupt:
        return
