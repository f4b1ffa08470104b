"""Stages as Prefect tasks: what a flow gets from one, made or found, and what it hears of one that fails."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.runtime import task_run
from prefect.testing.utilities import prefect_test_harness

from alignment.artifacts import Artifact
from alignment.errors import DataError
from flows.pipeline.tasks import stage

MADE = Artifact(stage="corpus", key="k", run_id="r", path=Path("/nowhere"), digest="d")
FOUND = MADE.model_copy(update={"cached": True})
SEEN: list[tuple[str, list[str]]] = []
pytestmark = pytest.mark.server


@stage
def make_something(given: Artifact, words: str | None) -> Artifact:
    """Hands back what it was given."""
    if words is None:
        raise DataError("no words were given; give some")
    SEEN.append((str(task_run.task_name), sorted(task_run.parameters)))
    return given


@flow(persist_result=False)
def call_by_place_and_name() -> tuple[Artifact, Artifact]:
    """One stage that made something, one that found it."""
    return make_something(MADE, "made"), make_something(given=FOUND, words="found")


@flow(persist_result=False)
def call_in_vain() -> Artifact:
    """A stage that cannot work."""
    return make_something(MADE, None)


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    """A server of its own for these flows."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


def test_a_caller_gets_the_artifact_whether_it_was_made_or_found(caplog):
    SEEN.clear()
    assert call_by_place_and_name() == (MADE, FOUND)
    assert SEEN == [("make-something", ["given", "words"])] * 2
    states = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert [("Cached" in state, "Completed" in state) for state in states] == [(False, True), (True, False)]


def test_an_error_of_a_stage_reaches_the_caller_as_it_was_raised():
    with pytest.raises(DataError, match="no words were given"):
        call_in_vain()


def test_a_stage_keeps_its_name_and_its_words():
    assert (make_something.__name__, make_something.__doc__) == ("make_something", "Hands back what it was given.")
