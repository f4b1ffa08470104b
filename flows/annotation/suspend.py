"""Suspends a flow run while people label: it holds no process and no slot until it is resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run

from flows.annotation.wait import WaitingForPeople, collection_name
from flows.annotation.waiting import Waiting, as_markdown, write_waiting


@contextmanager
def suspended_while_people_label() -> Iterator[None]:
    """Suspend the flow run where a stage raises WaitingForPeople; resumed, the flow runs again from the top."""
    try:
        yield
        return
    except WaitingForPeople as waiting:
        stopped = waiting
    write_waiting(waiting_record(stopped))
    # A key of its own each time: Prefect takes a second suspension with the same key for one that is over.
    suspend_flow_run(timeout=None, key=f"{collection_name(stopped.place)}#{uuid4().hex}")


def waiting_record(stopped: WaitingForPeople) -> Waiting:
    """What the watcher needs, with the table on the run's page."""
    waiting = Waiting(
        flow_run_id=flow_run.id,
        flow_run_name=flow_run.name,
        place=stopped.place,
        config=stopped.config,
        urls=stopped.urls,
        standing=stopped.standing,
    )
    table = create_markdown_artifact(
        markdown=as_markdown(waiting), key="waiting-for-people", description="how far the labelling is"
    )
    return waiting.model_copy(update={"artifact_id": str(table)})
