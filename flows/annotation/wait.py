"""Waits for people: decides whether enough is judged, and what a run does until then.

In a terminal it polls. In a deployment it checks once and has itself suspended (`flows.annotation.suspend`). Resuming
it by hand, with `rlhf resume` or the Resume button of Prefect's pages, continues with the judgements made so far;
Prefect keeps that in the run's history, so it survives crashes.
"""

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from alignment.artifacts import write_json
from alignment.errors import DataError
from flows.annotation.accounts import remember
from flows.annotation.publish import publish_status
from flows.annotation.waiting import Standing
from flows.console import console
from flows.failures import NotYet
from flows.flow_runs import BY_WATCHER
from flows.notifications import notify
from flows.recipe.channels import Event
from flows.stack.outages import through_outages
from labeling.collection import Collection, progress, pull_collection, reopen_full, sync_collection
from labeling.config import LabelingConfig
from labeling.errors import CollectionLost
from labeling.server.client import LabelStudio
from labeling.store.store import Store
from labeling.store.sync import Synced

log = logging.getLogger(__name__)
OPENED = "opened.json"
PAGE_SECONDS = 600.0


class WaitingForPeople(NotYet):
    """Too little is judged, and the run is to be suspended."""

    def __init__(self, standing: Standing, directory: Path, urls: dict[str, str], config: LabelingConfig) -> None:
        super().__init__(f"waiting for people: {standing.describe(config)}")
        self.standing, self.directory, self.urls, self.config = standing, directory, urls, config


# --- progress ----------------------------------------------------------------------------------------------------


def opened_at(directory: Path) -> datetime:
    """When the collection was first opened; stored in its directory, so that restarts do not extend the deadline."""
    path = directory / OPENED
    if not path.exists():
        write_json(path, {"opened_at": datetime.now(UTC).isoformat()})
    return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["opened_at"])


def reason_to_continue(standing: Standing, config: LabelingConfig, now: datetime) -> str:
    """Why the run can continue; "" while it has to wait for more judgements."""
    agreement, minimum = standing.agreement, config.minimum_agreement
    judged = f"{standing.done} of {standing.needed}"
    if standing.done >= config.minimum_share * standing.needed:
        if minimum is None:
            return f"{judged} are judged"
        if agreement is not None and agreement >= minimum:
            return f"{judged} are judged, with an agreement of {agreement:.2f}"
    if now >= standing.deadline:
        return f"the deadline of {config.deadline_hours:g} hours is reached, with {judged} judged"
    return ""


def measure_progress(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, directory: Path
) -> Standing:
    """Synchronise the store and measure the collection's progress. Raises CollectionLost for a deleted project."""
    known = remember(label_studio)
    status = progress(collection, store, sync_annotations(label_studio, collection, store), known)
    reopen_full(label_studio, status.full)
    agreement = None
    if config.minimum_agreement is not None and status.done >= config.minimum_share * status.needed:
        pulled = pull_collection(label_studio, collection, store, config.quality, known=known)
        agreement = pulled.agreement.overall.share
    deadline = opened_at(directory) + timedelta(hours=config.deadline_hours)
    standing = Standing(done=status.done, needed=status.needed, agreement=agreement, deadline=deadline)
    return standing.model_copy(update={"reason": reason_to_continue(standing, config, datetime.now(UTC))})


def sync_annotations(label_studio: LabelStudio, collection: Collection, store: Store) -> list[Synced]:
    """Synchronise the store. Raises CollectionLost when a project was deleted."""
    synced = sync_collection(label_studio, collection, store)
    for project in (result.project for result in synced):
        if project.deleted:
            raise CollectionLost(project.title, len(store.lost(project.project)), store.path)
    return synced


# --- in the stage ------------------------------------------------------------------------------------------------


def wait_for_people(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, directory: Path
) -> None:
    """Return when enough is judged, at the deadline with the judgements made so far, or when a person resumed the run.

    In a deployment it checks once and raises WaitingForPeople if none of these holds. Judgements are synchronised into
    the store meanwhile, and a status page is published in `directory`, MLflow and Prefect. Raises CollectionLost when
    the project was deleted, DataError when nothing is judged at the deadline.
    """
    if not in_deployment():
        poll(label_studio, collection, config, store, directory)
        return
    standing = through_outages(
        label_studio, lambda: measure_progress(label_studio, collection, config, store, directory)
    )
    publish_status(collection, store, config.quality, directory)
    reason = standing.reason or ("a person resumed the run" if standing.done and was_resumed(directory) else "")
    if not reason:
        raise WaitingForPeople(standing, directory, collection.urls, config)
    finish_waiting(standing, reason)


def poll(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, directory: Path
) -> None:
    """Show the projects' addresses and a progress bar until enough is judged; publish the page every ten minutes."""
    out = console()
    for project in (batch.project for batch in collection.batches):
        out.print(f"waiting for people: {project.title} at {project.labeling_url}", soft_wrap=True, markup=False)
    out.print("Ctrl-C stops waiting; the same command resumes with what was judged", soft_wrap=True)
    published_at: float | None = None
    columns = (TextColumn("judged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=out) as bar:
        judged = bar.add_task("judged")
        while True:
            standing = through_outages(
                label_studio, lambda: measure_progress(label_studio, collection, config, store, directory)
            )
            if published_at is None or time.monotonic() - published_at > PAGE_SECONDS:
                publish_status(collection, store, config.quality, directory)
                published_at = time.monotonic()
            bar.update(judged, completed=standing.done, total=standing.needed)
            if standing.reason:
                finish_waiting(standing, standing.reason)
                return
            time.sleep(config.poll_seconds)


def finish_waiting(standing: Standing, reason: str) -> None:
    """Log the reason. Raises DataError when nothing was judged."""
    if not standing.done:
        raise DataError(
            f"nothing was judged by {standing.deadline:%Y-%m-%d %H:%M} UTC; raise `labeling.deadline_hours`, or make "
            "sure that people can reach the projects and restart the run: it continues with what is judged by then"
        )
    log.info("the labelling ends: %s", reason)
    if standing.reason:  # else a person resumed the run
        notify(ending(standing), standing.reason)


def ending(standing: Standing) -> Event:
    """What ended the wait, for those who are told."""
    if standing.done >= standing.needed:
        return "people_done"
    return "deadline_reached" if datetime.now(UTC) >= standing.deadline else "quota_reached"


def in_deployment() -> bool:
    """Whether this run belongs to a deployment, so that it can be suspended and resumed."""
    return deployment.id is not None


def was_resumed(directory: Path) -> bool:
    """Whether a person resumed this flow run while it waited for the collection in `directory`."""
    with get_client(sync_client=True) as prefect:
        return resumed_by_hand(prefect.read_flow_run_states(flow_run.id), collection_name(directory))


def resumed_by_hand(states: Sequence[State], name: str) -> bool:
    """Whether a suspension for the collection `name` was ended by a person, and not by the watcher."""
    history = sorted(states, key=lambda state: state.timestamp)
    return any(
        (before.state_details.pause_key or "").startswith(f"{name}#")
        and after.name == "Resuming"
        and not (after.message or "").startswith(BY_WATCHER)
        for before, after in pairwise(history)
    )


def collection_name(directory: Path) -> str:
    """The name of a collection in the history of a flow run."""
    return "/".join(directory.parts[-2:])
