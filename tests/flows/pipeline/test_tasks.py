"""Steps as Prefect tasks: results, new or cached, and errors as the flow sees them."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.runtime import task_run
from prefect.testing.utilities import prefect_test_harness

from alignment.artifacts import Artifact
from alignment.config.stages import TownConfig
from alignment.errors import DataError
from alignment.stage import Step
from alignment.stages import TOWN
from flows.pipeline import tasks

MADE = Artifact(stage="town", key="k", run_id="r", path=Path("/nowhere"), digest="d")
FOUND = MADE.model_copy(update={"cached": True})
STEP = Step(TOWN, TownConfig())
pytestmark = pytest.mark.server


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    """A server of its own for these flows."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.mark.parametrize(("artifact", "state"), [(MADE, "Completed"), (FOUND, "Cached")])
def test_a_caller_gets_the_artifact_whether_it_was_made_or_found(artifact, state, caplog, monkeypatch) -> None:
    names = []

    def run_step(step, inputs, perform):
        names.append(task_run.task_name)
        assert (step, inputs, perform) == (STEP, {}, Step.perform)
        return artifact

    @flow(persist_result=False)
    def call() -> Artifact:
        return tasks.run_task(STEP, {})

    monkeypatch.setattr(tasks, "run_step", run_step)
    assert call() == artifact and names == ["town"]
    messages = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert any(state in message for message in messages)


def test_an_error_of_a_stage_reaches_the_caller_as_it_was_raised(monkeypatch) -> None:
    def run_step(step, inputs, perform):
        raise DataError("no words were given; give some")

    @flow(persist_result=False)
    def call() -> Artifact:
        return tasks.run_task(STEP, {})

    monkeypatch.setattr(tasks, "run_step", run_step)
    with pytest.raises(DataError, match="no words were given"):
        call()
