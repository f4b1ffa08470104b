"""`rlhf watch`, `resume` and `retry`, and what `rlhf status` shows of runs."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.stack.processes import StackError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from rich.console import Console
    from rich.table import Table

    from flows.deployments.overview import Row

Run = Annotated[str, typer.Argument(metavar="RUN", help="The name or the id of a flow run.")]
Home = Annotated[
    Path | None, typer.Option("--home", help="Where the stack lives: RLHF_HOME, else ./.rlhf", show_default=False)
]


def watch(
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Go on, this long after each look.")] = None,
    max_restarts: Annotated[int, typer.Option(help="How often a dead run is started again.")] = 3,
    home: Home = None,
) -> None:
    """Resume runs for which enough is judged, and start dead ones again; once, or every so often."""
    connect(home)
    import httpx

    from flows.deployments.watcher import look_after_runs

    while True:
        try:
            typer.echo("\n".join(look_after_runs(max_restarts, home=home)) or "nothing to do")
        except httpx.HTTPError as error:
            if every is None:
                raise StackError(f"Prefect does not answer ({error}); `rlhf up` starts the local server") from error
            typer.echo(f"Prefect does not answer, it is asked again: {error}")
        if every is None:
            return
        time.sleep(every)


def resume(run: Run, home: Home = None) -> None:
    """Let a run that waits for people go on now, with what is judged so far."""
    from flows import flow_runs

    _let(flow_runs.resume, run, "by hand, with what there is", home)


def retry(run: Run, home: Home = None) -> None:
    """Start an ended run again: finished stages are kept, an unfinished one goes on from its checkpoint."""
    from flows import flow_runs

    _let(flow_runs.start_again, run, "by hand", home)


def _let(go_on: "Callable[[SyncPrefectClient, FlowRun, str], object]", run: str, why: str, home: Path | None) -> None:
    """Find a run and have it go on."""
    connect(home)
    from prefect.client.orchestration import get_client

    from flows import flow_runs

    with get_client(sync_client=True) as prefect:
        found = flow_runs.named(prefect, run)
        go_on(prefect, found, why)
    typer.echo(f"{found.name} goes on when a worker takes it")


def connect(home: Path | None) -> None:
    """Point Prefect at the running stack before it is imported; what is down besides is said where it is needed."""
    from flows.stack.stack import connect

    os.environ.update(connect(home, ["prefect"]).environment())


def show_runs(console: "Console", home: Path | None, *, prefect_answers: bool) -> None:
    """Print pools and runs; with Prefect away, the waiting runs as they were last seen."""
    from flows.deployments import overview

    if not prefect_answers:
        if rows := overview.last_known(home):
            console.print(_table("waiting run, as last seen", rows))
        return
    connect(home)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as prefect:
        console.print(_table("work pool", overview.pools(prefect)))
        if rows := overview.runs(prefect, home):
            console.print(_table("run", rows))


def _table(title: str, rows: "Sequence[Row]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title, "state", "seen", "next")
    for row in rows:
        table.add_row(*map(escape, (row.name, row.state, row.seen, row.next)))
    return table
