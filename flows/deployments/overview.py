"""Prefect's pools, workers and runs for `rlhf status` and `rlhf doctor`, each with a next step."""

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.exceptions import PrefectException

from flows import flow_runs
from flows.annotation.waiting import read_waiting
from flows.deployments.rows import Row, progress
from flows.flow_runs import BY_WATCHER, HEARTBEAT_SECONDS, SILENCE
from flows.operations.doctor import Finding

TO_START = ("Late", "AwaitingRetry", "Resuming", "AwaitingConcurrencySlot")
CRASHES_SHOWN = 10


def tables() -> list[tuple[str, list[Row]]]:
    """Pools and runs, each under its title. Prefect must answer."""
    with get_client(sync_client=True) as prefect:
        return [("work pool", pools(prefect)), ("run", runs(prefect))]


def check_pools() -> list[Finding]:
    """The check of `rlhf doctor`: each pool has a worker. No pools is fine: runs in a terminal need none."""
    try:
        with get_client(sync_client=True) as prefect:
            rows = pools(prefect)
    except (httpx.HTTPError, PrefectException) as error:
        return [Finding(what="pools", ok=False, seen=str(error), fix="read the log of Prefect's server")]
    return [
        Finding(what=f"pool {row.name}", ok=not row.next or not row.state, seen=row.state or "no pools", fix=row.next)
        for row in rows
    ]


def pools(prefect: SyncPrefectClient) -> list[Row]:
    """The work pools with their workers."""
    rows = [_pool(prefect, pool) for pool in prefect.read_work_pools()]
    return rows or [Row(name="(none)", state="", seen="", next="`rlhf deploy` creates work pools and deployments")]


def _pool(prefect: SyncPrefectClient, pool: WorkPool) -> Row:
    workers = prefect.read_workers_for_work_pool(pool.name)
    online = [worker for worker in workers if worker.status is not None and worker.status.value == "ONLINE"]
    seen = (
        ", ".join(f"{worker.name} {ago(worker.last_heartbeat_time)}" for worker in online or workers[:3])
        or "no worker yet"
    )
    if pool.is_paused:
        return Row(name=pool.name, state="paused", seen=seen, next=f"`prefect work-pool resume {pool.name}`")
    if not online:
        command = "python -m flows.deployments.worker" if pool.type == "process" else "prefect worker start"
        start = f"start a worker: `{command} --pool {pool.name}`"
        return Row(name=pool.name, state="no worker online", seen=seen, next=start)
    slots = "" if pool.concurrency_limit is None else f", {pool.active_slots} of {pool.concurrency_limit} slots in use"
    return Row(name=pool.name, state=f"{len(online)} online{slots}", seen=seen)


def runs(prefect: SyncPrefectClient) -> list[Row]:
    """Waiting, scheduled, running and dead runs."""
    return [*_waiting(prefect), *_starting(prefect), *_running(prefect), *_crashed(prefect)]


def _waiting(prefect: SyncPrefectClient) -> Iterator[Row]:
    known = {waiting.flow_run_id: waiting for waiting in read_waiting()}
    for run in flow_runs.runs_in_state(prefect, "Suspended"):
        seen = "this home has no record of what it waits for"
        if waiting := known.get(str(run.id)):
            seen = progress(waiting)
        next_step = f"the watcher resumes it; `rlhf resume {run.name}` resumes it now with the judgements made so far"
        yield Row(name=run.name, state="Suspended", seen=seen, next=next_step)


def _starting(prefect: SyncPrefectClient) -> Iterator[Row]:
    for run in flow_runs.runs_in_state(prefect, *TO_START, *flow_runs.STARTING):
        yield Row(name=run.name, state=str(run.state_name), seen=f"since {_since(run)}", next="a worker picks it up")


def _running(prefect: SyncPrefectClient) -> Iterator[Row]:
    in_terminals = flow_runs.runs_in_state(prefect, "Running", pool="")
    for run in [*flow_runs.runs_in_state(prefect, "Running"), *in_terminals]:
        beat = flow_runs.last_heartbeat(prefect, run)
        if beat is None:
            next_step = (
                f"sends no heartbeats: set PREFECT_FLOWS_HEARTBEAT_FREQUENCY={HEARTBEAT_SECONDS} where it is started"
            )
            yield Row(name=run.name, state="Running", seen=f"since {_since(run)}", next=next_step)
        elif datetime.now(UTC) - beat > SILENCE:
            next_step = "the watcher restarts it, or `rlhf watch` by hand"
            if run.deployment_id is None:
                next_step = "the same `rlhf run` command resumes it"
            yield Row(name=run.name, state="dead", seen=f"last heartbeat {ago(beat)}", next=next_step)
        else:
            yield Row(name=run.name, state="Running", seen=f"last heartbeat {ago(beat)}")


def _crashed(prefect: SyncPrefectClient) -> Iterator[Row]:
    for run in flow_runs.runs_in_state(prefect, "Crashed")[:CRASHES_SHOWN]:
        message = (run.state.message if run.state is not None else "") or ""
        given_up = message.startswith(BY_WATCHER)
        next_step = f"`rlhf retry {run.name}`" if given_up else "the watcher restarts it, or `rlhf watch` by hand"
        yield Row(name=run.name, state="Crashed", seen=message.removeprefix(BY_WATCHER), next=next_step)


def _since(run: FlowRun) -> str:
    return "" if run.state is None else ago(run.state.timestamp)


def ago(time: datetime | None) -> str:
    """A past time relative to now, in a suitable unit."""
    if time is None:
        return "never"
    seconds = max(0.0, (datetime.now(UTC) - time).total_seconds())
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
