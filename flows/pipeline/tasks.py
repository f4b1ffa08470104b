"""A step of a recipe as a Prefect task, in this process or in several with `accelerate launch`."""

from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.states import Completed

from alignment.artifacts import Artifact
from alignment.stage import Step
from flows.annotation.stages import LABELING
from flows.failures import NotYet
from flows.pipeline.accelerate import launch
from flows.tracking import links
from flows.tracking.runner import as_state, run_step


def run_task(step: Step, inputs: Mapping[str, Artifact]) -> Artifact:
    """Run a step, or take its output from the cache, as a Prefect task with the name of the stage.

    MLflow is the cache, so Prefect persists nothing; a cached step is shown as Cached, and one that waits for people as
    Waiting. A task that returns a state passes that state to its caller and not its data, hence `return_state`.
    """
    task_of_stage = perform_step.with_options(name=step.name)
    state: Any = task_of_stage(step, dict(inputs), return_state=True)
    result: Artifact | NotYet = state.result()
    if isinstance(result, NotYet):
        raise result
    if step.name == LABELING.name and result.cached:
        links.link_known_projects(result.run_id)
        say_what_was_judged(result)
    return result


def say_what_was_judged(labelled: Artifact) -> None:
    """Say whose judgements a cached labelling stage has."""
    from flows.annotation.collections import collected

    get_run_logger().info("the labelling is finished: %s", collected(labelled))


@task(cache_policy=NO_CACHE, persist_result=False)
def perform_step(step: Step, inputs: dict[str, Artifact]) -> Artifact | State[Artifact] | State[NotYet]:
    """Run a step on its inputs, unless it is cached."""
    try:
        perform = Step.perform if step.compute.processes == 1 else launch
        return as_state(run_step(step, inputs, perform))
    except NotYet as waiting:
        return Completed(name="Waiting", message=str(waiting), data=waiting)
