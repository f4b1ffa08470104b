"""The watcher: resumes suspended runs when enough is judged, and restarts dead runs a limited number of times.

Prefect notices a killed run only while its worker is alive. Without the worker or the machine the run stays RUNNING for
ever, but its heartbeats stop. They also stop while Prefect's server is down or a laptop sleeps: a run counts as dead
only if it is silent at one check and still silent some time later. Restarts are counted in the run's own history, so
the limit survives restarts of the watcher; a restart by a person resets the count. Cancelled and failed runs are
ignored.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from pydantic import TypeAdapter, ValidationError

from alignment.artifacts import write_json
from alignment.errors import RLHFError
from flows import flow_runs
from flows.annotation.label_studio import annotation_store, client
from flows.annotation.wait import measure_progress
from flows.annotation.waiting import Standing, Waiting, as_markdown, read_waiting, remove_waiting, write_waiting
from flows.flow_runs import BY_WATCHER, SILENCE, StateRefused
from flows.home import home_directory
from flows.locks import try_lock
from flows.notifications import Notifier
from flows.recipe.channels import Channel, home_channels
from labeling.collection import COLLECTION_FILE, read_collection
from labeling.errors import LabelingError

LOCK = "watch"
SILENT = "silent.json"  # in the home: when each silent run was first noticed
DOUBT = timedelta(seconds=45)  # longer than the interval of heartbeats, shorter than the minute between two checks
SETTLED = timedelta(
    seconds=30
)  # a worker reports a killed process twice, and the second report would end a restarted run
NOT_STARTED = timedelta(minutes=15)  # a run may be PENDING this long while images are pulled
RECENT = timedelta(days=7)  # older crashes are ignored
HEARTBEATS = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


@flow(name="watch", persist_result=False)
def watch(max_restarts: int = 3) -> list[str]:
    """Check all runs once; returns a message for each action. Meant to be scheduled every minute."""
    messages = check_runs(max_restarts)
    for message in messages:
        get_run_logger().info(message)
    return messages


def check_runs(
    max_restarts: int = 3,
    *,
    silence: timedelta = SILENCE,
    doubt: timedelta = DOUBT,
    settled: timedelta = SETTLED,
) -> list[str]:
    """The body of the flow. A run is dead when it is silent for `silence` and for another `doubt` after the watcher
    first noticed; it is restarted when it has been CRASHED for the time `settled`.

    A second watcher on the same home does nothing while the first is active.
    """
    with try_lock(home_directory(), LOCK) as free:
        if not free:
            return []
        with get_client(sync_client=True) as prefect:
            messages = [*check_waiting_runs(prefect), *mark_dead(prefect, silence, doubt)]
            return [*messages, *restart_crashed(prefect, max_restarts, settled)]


# --- suspended runs ----------------------------------------------------------------------------------------------


def check_waiting_runs(prefect: SyncPrefectClient) -> Iterator[str]:
    """Resume the runs that are ready and update the tables of the others. An error with one does not affect others."""
    for waiting in read_waiting():
        try:
            run = prefect.read_flow_run(UUID(waiting.flow_run_id))
        except ObjectNotFound:
            remove_waiting(waiting.flow_run_id)
            continue
        if run.state is not None and run.state.is_final():
            remove_waiting(waiting.flow_run_id)
        elif run.state_name == "Suspended":
            try:
                yield from check_waiting_run(prefect, run, waiting)
            except (LabelingError, RLHFError) as error:
                yield f"{run.name} is still waiting: {error}"


def check_waiting_run(prefect: SyncPrefectClient, run: FlowRun, waiting: Waiting) -> Iterator[str]:
    """Resume a suspended run with the reason in its history, or update its table."""
    standing = current_standing(waiting)
    if standing.reason:
        flow_runs.resume(prefect, run, BY_WATCHER + standing.reason)
        yield f"{run.name} is resumed: {standing.reason}"
    elif standing != waiting.standing:
        updated = waiting.model_copy(update={"standing": standing})
        update_table(prefect, updated)
        write_waiting(updated)


def current_standing(waiting: Waiting) -> Standing:
    """The current progress of a suspended run's collection. If another run finished it, that is the reason."""
    if not (waiting.place / COLLECTION_FILE).exists():
        return waiting.standing.model_copy(update={"reason": "another run has finished this labelling"})
    collection = read_collection(waiting.place)
    with closing(annotation_store()) as store, client(waiting.config) as label_studio:
        return measure_progress(label_studio, collection, waiting.config, store, waiting.place)


def update_table(prefect: SyncPrefectClient, waiting: Waiting) -> None:
    """Update the table on the run's page."""
    if waiting.artifact_id is not None:
        prefect.update_artifact(UUID(waiting.artifact_id), ArtifactUpdate(data=as_markdown(waiting)))


# --- dead runs ---------------------------------------------------------------------------------------------------


def mark_dead(prefect: SyncPrefectClient, silence: timedelta, doubt: timedelta) -> Iterator[str]:
    """Mark runs without heartbeats as CRASHED."""
    now, path = datetime.now(UTC), home_directory() / SILENT
    before: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    silent: dict[str, str] = {}
    for run in flow_runs.runs_in_state(prefect, "Running", *flow_runs.STARTING):
        seen = last_sign_of_life(prefect, run)
        if seen is None or now - seen <= (silence if run.state_name == "Running" else NOT_STARTED):
            continue
        noticed = before.get(str(run.id), now.isoformat())
        if now - datetime.fromisoformat(noticed) < doubt:
            silent[str(run.id)] = noticed
            continue
        message = f"no heartbeat since {seen:%Y-%m-%d %H:%M:%S} UTC"
        try:
            flow_runs.set_state(prefect, run, Crashed(message=message))
            yield f"{run.name} is dead: {message}"
        except StateRefused as error:
            yield f"{run.name} seems dead: {error}"
    write_json(path, silent)


def restart_crashed(prefect: SyncPrefectClient, max_restarts: int, settled: timedelta) -> Iterator[str]:
    """Restart crashed runs within the limit."""
    for run in flow_runs.runs_in_state(prefect, "Crashed"):
        assert run.state is not None
        given_up = (run.state.message or "").startswith(BY_WATCHER)
        if settled <= datetime.now(UTC) - run.state.timestamp < RECENT and not given_up:
            try:
                message = restart_or_give_up(prefect, run, max_restarts)
                notify_crash(run, message)
                yield message
            except RLHFError as error:
                yield f"{run.name} is not restarted: {error}"


def notify_crash(run: FlowRun, message: str) -> None:
    """Tell the channels of a crashed run's recipe; an automation of Prefect tells those of the home."""
    recipe = run.parameters.get("recipe")
    try:
        channels = TypeAdapter(tuple[Channel, ...]).validate_python(recipe.get("notify", ()) if recipe else ())
    except ValidationError:  # a run of another version of the recipe
        return
    notified_by_prefect = {channel.to for channel in home_channels(home_directory()) if "run_died" in channel.events}
    notifier = Notifier((channel for channel in channels if channel.to not in notified_by_prefect), run.name)
    notifier.send("run_died", message)
    notifier.close()


def last_sign_of_life(prefect: SyncPrefectClient, run: FlowRun) -> datetime | None:
    """The last heartbeat, or the start of the state if later; None for a run that sends no heartbeats."""
    assert run.state is not None
    began = run.state.timestamp
    if run.state_name != "Running":
        return began
    beat = flow_runs.last_heartbeat(prefect, run)
    if beat is None and not sends_heartbeats(prefect, run):
        return None
    return max(began, beat or began)


def sends_heartbeats(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run's job variables enable heartbeats: it may have been killed before the first."""
    if run.deployment_id is None:
        return False
    job_variables = prefect.read_deployment(run.deployment_id).job_variables or {}
    return HEARTBEATS in {**job_variables.get("env", {}), **(run.job_variables or {}).get("env", {})}


def restart_or_give_up(prefect: SyncPrefectClient, run: FlowRun, max_restarts: int) -> str:
    """Reschedule a crashed run; after too many restarts leave it CRASHED, with instructions in its message."""
    assert run.state is not None
    why = run.state.message or "it crashed"
    before = flow_runs.restarts(flow_runs.history(prefect, run))
    if before >= max_restarts:
        message = f"it was restarted {before} times and crashed each time, the last time because: {why} "
        message += f"See its logs; `rlhf retry {run.name}` restarts it"
        flow_runs.set_state(prefect, run, Crashed(message=BY_WATCHER + message), force=True)
        return f"{run.name} stays crashed: {message}"
    flow_runs.restart(prefect, run, f"{BY_WATCHER}restart {before + 1} of {max_restarts} after: {why}")
    return f"{run.name} is restarted ({before + 1} of {max_restarts}): {why}"
