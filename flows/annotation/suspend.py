"""Suspends a flow run while people label: it occupies no process and no slot until it is resumed."""

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
    """Suspend the flow run when a stage raises WaitingForPeople; once resumed, the flow runs again from the start."""
    try:
        yield
        return
    except WaitingForPeople as waiting:
        interruption = waiting
    write_waiting(waiting_record(interruption))
    # A unique key each time: Prefect treats a second suspension with the same key as already resumed.
    suspend_flow_run(timeout=None, key=f"{collection_name(interruption.directory)}#{uuid4().hex}")


def waiting_record(interruption: WaitingForPeople) -> Waiting:
    """The record for the watcher; creates the table on the run's page."""
    waiting = Waiting(
        flow_run_id=flow_run.id,
        flow_run_name=flow_run.name,
        place=interruption.directory,
        config=interruption.config,
        urls=interruption.urls,
        standing=interruption.standing,
    )
    table = create_markdown_artifact(
        markdown=as_markdown(waiting), key="waiting-for-people", description="progress of the labelling"
    )
    return waiting.model_copy(update={"artifact_id": str(table)})
