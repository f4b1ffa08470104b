"""A sweep as a flow: its cells are children of it in Prefect and in MLflow, one failure stops nothing, and a repeated
command runs only what is missing. Pipelines are stand-ins here; `tests/test_pipeline.py` sweeps over a real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.runtime import flow_run

from alignment.errors import GateError
from flows.pipeline import sweep
from flows.pipeline.sweep import TAG_SWEEP, rlhf_sweep, sweep_of
from flows.recipe.schema import Recipe
from flows.sweeps.grid import cells_of
from flows.tracking import runs
from flows.tracking.links import TAG_NOTE
from tests.conftest import TINY

pytestmark = pytest.mark.server


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, int]]]:
    """The coefficients and seeds of the pipelines that ran; that of 0.05 with seed 1 fails the first time."""
    ran: list[tuple[float, int]] = []

    @flow(name="rlhf", persist_result=False)
    def pipeline(recipe: Recipe, promote: bool = True) -> dict[str, Any]:
        assert not promote
        cell = (recipe.ppo.kl_coef, recipe.seed)
        with runs.pipeline_run(recipe.name, recipe=recipe, flow_run_id=str(flow_run.id), alone=True) as run_id:
            first = cell not in ran
            ran.append(cell)
            if cell == (0.05, 1) and first:
                raise GateError("the reward model is poor")
        return {
            "release": f"tiny-{recipe.seed}-{recipe.ppo.kl_coef}",
            "models": {"policy": "models:/policy/1"},
            "gate": {"passed": True, "missed": []},
            "win_rate_vs_sft": {"rate": 0.5 + recipe.ppo.kl_coef},
            "kl_to_sft": 1.0,
            "tax": {"policy": 1.1, "sft": 1.0},
            "gold": None,
            "reward_model": {"accuracy_heldout_prompts": 0.7},
            "mlflow_run_id": run_id,
        }

    monkeypatch.setattr(sweep, "rlhf", pipeline)
    yield ran


def test_a_sweep_goes_on_after_a_failure_and_where_it_was_stopped(
    workplace: Path, pipelines: list[tuple[float, int]]
) -> None:
    grid = ([str(TINY)], ["ppo.kl_coef=0.02,0.05"], [0, 1])
    planned = sweep_of(cells_of(*grid))
    outcomes = rlhf_sweep(*grid)
    assert pipelines == [(0.02, 0), (0.05, 0), (0.02, 1), (0.05, 1)]
    assert [outcome.problem for outcome in outcomes] == ["", "", "", "GateError: the reward model is poor"]
    report = (planned.directory / "report.md").read_text()
    assert "| tiny kl_coef=0.05 | 1 of 2 |" in report and "seed 1: GateError: the reward model is poor" in report
    (parent,) = runs.search({TAG_SWEEP: planned.name})
    assert parent.info.run_name == f"sweep {planned.name}" and parent.data.tags[TAG_NOTE].startswith("# Sweep tiny")
    children = runs.search({"mlflow.parentRunId": parent.info.run_id})
    assert sorted(child.info.status for child in children) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    logged = {item.path for item in MlflowClient().list_artifacts(parent.info.run_id, "sweep")}
    assert {"sweep/report.md", "sweep/cells.csv", "sweep/figures.png", "sweep/frontier.png"} == logged
    check_names(parent.data.tags[runs.TAG_FLOW_RUN])

    again = rlhf_sweep(*grid)
    assert pipelines[4:] == [(0.05, 1)] and not any(outcome.problem for outcome in again)
    assert [run.info.run_id for run in runs.search({TAG_SWEEP: planned.name})] == [parent.info.run_id]
    assert "Cells without figures" not in (planned.directory / "report.md").read_text()


def check_names(flow_run_id: str) -> None:
    """The children of the flow run are called after their cells."""
    condition = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as prefect:
        names = {run.name for run in prefect.read_flow_runs(flow_run_filter=condition)}
    assert names == {f"tiny kl_coef={value}, seed {seed}" for value in ("0.02", "0.05") for seed in (0, 1)}
