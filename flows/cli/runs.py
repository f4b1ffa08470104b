"""`rlhf watch`, `resume` and `retry`."""

import time
from typing import Annotated, Literal

import httpx
import typer

from flows.cli.common import queries
from flows.console import echo
from flows.stack.environment import load_clients, use_stack

Run = Annotated[str, typer.Argument(metavar="RUN", help="The name or the id of a flow run.")]


def watch(
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Interval between checks; without it, one check.")
    ] = None,
    max_restarts: Annotated[int, typer.Option(help="Maximum restarts of a dead run.")] = 3,
) -> None:
    """Resume runs with enough judgements and restart dead runs, once or periodically."""
    if every is None:
        with queries("prefect"):
            from flows.deployments.watcher import check_runs

            echo("\n".join(check_runs(max_restarts)) or "nothing to do", lines=True)
        return
    use_stack("prefect")
    load_clients("prefect")
    from flows.deployments.watcher import check_runs

    while True:
        try:
            echo("\n".join(check_runs(max_restarts)) or "nothing to do", lines=True)
        except httpx.HTTPError as error:
            echo(f"Prefect does not answer, the watcher retries: {error}")
        time.sleep(every)


def resume(run: Run) -> None:
    """Resume a run that waits for people, with the judgements made so far."""
    _set_state("resume", run)


def retry(run: Run) -> None:
    """Restart an ended run: finished stages are kept, an unfinished one continues from its checkpoint."""
    _set_state("retry", run)


def _set_state(action: Literal["resume", "retry"], name: str) -> None:
    with queries("prefect"):
        from prefect.client.orchestration import get_client

        from flows import flow_runs

        with get_client(sync_client=True) as prefect:
            run = flow_runs.find_run(prefect, name)
            if action == "resume":
                flow_runs.resume(prefect, run, "by hand, with the judgements made so far")
            else:
                flow_runs.restart(prefect, run, "by hand")
    echo(f"{run.name} continues when a worker picks it up")
