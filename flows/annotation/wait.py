"""Waiting for people: whether enough is judged, and what a run does until then.

In a terminal it polls. In a deployment it looks once and has itself suspended (`flows.annotation.suspend`). Whoever
resumes it, by `rlhf resume` or the Resume button of Prefect's pages, asks to go on with what there is; Prefect keeps
that in the run's history, so it outlives crashes.
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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from alignment.artifacts import write_json
from alignment.errors import DataError
from flows.annotation.publish import publish_status
from flows.annotation.waiting import Standing
from flows.failures import NotYet
from flows.flow_runs import BY_WATCHER
from flows.stack.outages import through_outages
from labeling.collection import Collection, progress, pull_collection, sync_collection
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

    def __init__(self, standing: Standing, place: Path, urls: dict[str, str], config: LabelingConfig) -> None:
        super().__init__(f"waiting for people: {standing.in_words(config)}")
        self.standing, self.place, self.urls, self.config = standing, place, urls, config


# --- enough or not -----------------------------------------------------------------------------------------------


def opened_at(place: Path) -> datetime:
    """When the collection was first opened; kept beside it, so that restarts do not put the deadline off."""
    path = place / OPENED
    if not path.exists():
        write_json(path, {"opened_at": datetime.now(UTC).isoformat()})
    return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["opened_at"])


def reason_to_continue(found: Standing, config: LabelingConfig, now: datetime) -> str:
    """Why it is enough, in words; "" when more is to be waited for."""
    agreed, asked = found.agreement, config.minimum_agreement
    if found.done >= config.minimum_share * found.needed:
        if asked is None:
            return f"{found.done} of {found.needed} are judged"
        if agreed is not None and agreed >= asked:
            return f"{found.done} of {found.needed} are judged, with an agreement of {agreed:.2f}"
    if now >= found.deadline:
        return f"the deadline of {config.deadline_hours:g} hours is reached, with {found.done} of {found.needed} judged"
    return ""


def measure_progress(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, place: Path
) -> Standing:
    """Bring the store up to date and say how far the collection is. Raises CollectionLost for a deleted project."""
    state = progress(collection, store, sync_annotations(label_studio, collection, store))
    agreement = None
    if config.minimum_agreement is not None and state.done >= config.minimum_share * state.needed:
        agreement = pull_collection(label_studio, collection, store, config.quality).agreement.overall.share
    deadline = opened_at(place) + timedelta(hours=config.deadline_hours)
    found = Standing(done=state.done, needed=state.needed, agreement=agreement, deadline=deadline)
    return found.model_copy(update={"reason": reason_to_continue(found, config, datetime.now(UTC))})


def sync_annotations(label_studio: LabelStudio, collection: Collection, store: Store) -> list[Synced]:
    """Bring the store up to date. Raises CollectionLost when a project was deleted."""
    synced = sync_collection(label_studio, collection, store)
    for project in (one.project for one in synced):
        if project.deleted:
            raise CollectionLost(project.title, len(store.lost(project.project)), store.path)
    return synced


# --- in the stage ------------------------------------------------------------------------------------------------


def wait_for_people(
    label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, place: Path
) -> None:
    """Return when enough is judged, at the deadline with what there is, or when a person asked to go on.

    In a deployment it looks once and raises WaitingForPeople if that is not so. What people say goes into the store
    on the way, and a page in `place`, MLflow and Prefect tells how it goes. Raises CollectionLost when somebody deleted
    the project, DataError when nothing at all is judged at the deadline.
    """
    if not in_deployment():
        poll(label_studio, collection, config, store, place)
        return
    found = through_outages(label_studio, lambda: measure_progress(label_studio, collection, config, store, place))
    publish_status(collection, store, config.quality, place)
    reason = found.reason or ("a person asked to go on" if found.done and was_resumed(place) else "")
    if not reason:
        raise WaitingForPeople(found, place, collection.urls, config)
    finish_waiting(found, reason)


def poll(label_studio: LabelStudio, collection: Collection, config: LabelingConfig, store: Store, place: Path) -> None:
    """Show where to work and how far it is until it is enough; every ten minutes the page is written anew."""
    console = Console()
    for kind, url in collection.urls.items():
        console.print(f"waiting for people: {kind} at {url}", soft_wrap=True)
    console.print("Ctrl-C stops the waiting; the same command goes on with what was judged", soft_wrap=True)
    published_at: float | None = None
    columns = (TextColumn("judged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console) as bar:
        judged = bar.add_task("judged")
        while True:
            found = through_outages(
                label_studio, lambda: measure_progress(label_studio, collection, config, store, place)
            )
            if published_at is None or time.monotonic() - published_at > PAGE_SECONDS:
                publish_status(collection, store, config.quality, place)
                published_at = time.monotonic()
            bar.update(judged, completed=found.done, total=found.needed)
            if found.reason:
                finish_waiting(found, found.reason)
                return
            time.sleep(config.poll_seconds)


def finish_waiting(found: Standing, reason: str) -> None:
    """Say why. Raises DataError when there is nothing to go on with."""
    if not found.done:
        raise DataError(
            f"nothing was judged by {found.deadline:%Y-%m-%d %H:%M} UTC; raise `labeling.deadline_hours`, or see to it "
            "that people can reach the projects and start the run again: it goes on with what is judged by then"
        )
    log.info("the labelling ends: %s", reason)


def in_deployment() -> bool:
    """Whether this run came from a deployment, so that it can be suspended and resumed."""
    return deployment.id is not None


def was_resumed(place: Path) -> bool:
    """Whether a person resumed this flow run while it waited for the collection in `place`."""
    with get_client(sync_client=True) as prefect:
        return resumed_by_hand(prefect.read_flow_run_states(flow_run.id), collection_name(place))


def resumed_by_hand(states: Sequence[State], name: str) -> bool:
    """Whether in this history a suspension for the collection `name` was ended by somebody else than the watcher."""
    history = sorted(states, key=lambda state: state.timestamp)
    return any(
        (before.state_details.pause_key or "").startswith(f"{name}#")
        and after.name == "Resuming"
        and not (after.message or "").startswith(BY_WATCHER)
        for before, after in pairwise(history)
    )


def collection_name(place: Path) -> str:
    """What a collection is called in the history of a flow run."""
    return "/".join(place.parts[-2:])
