"""The loop over the steps, without servers: what a gate stops, and what is refused before anything runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.artifacts import Artifact
from alignment.errors import ConfigError, GateError
from flows.cli.main import app
from flows.pipeline import flow
from flows.pipeline.dag import needed, steps
from flows.pipeline.plan import plan
from flows.recipe.schema import load_recipe
from tests.conftest import TINY


@pytest.fixture
def performed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that ran; each leaves a reward model's figures that miss every gate."""
    names: list[str] = []

    def run_task(step, inputs):
        names.append(step.name)
        directory = tmp_path / step.name
        directory.mkdir()
        (directory / "result.json").write_text('{"accuracy_heldout_prompts": 0.1}')
        return Artifact(stage=step.name, key=step.name, run_id="r", path=directory, digest="d")

    monkeypatch.setattr(flow, "run_task", run_task)
    return names


@pytest.mark.parametrize("method", ["ppo", "rloo", "best_of_n"])
def test_a_poor_reward_model_stops_the_methods_that_follow_it(method: str, performed: list[str]) -> None:
    lengths = ["align.best_of_n.finetune.max_length_tokens=96"]
    recipe = load_recipe(
        str(TINY), [*lengths, f"align.method={method}", "reward_gate.min_accuracy_heldout_prompts=0.6"]
    )
    with pytest.raises(GateError):
        flow.run_steps(recipe, steps(recipe))
    assert performed[-1] == "reward"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_poor_reward_model_does_not_stop_the_others(method: str, performed: list[str]) -> None:
    options = [f"align.method={method}", f"align.{method}.max_length_tokens=96"]
    recipe = load_recipe(str(TINY), [*options, "reward_gate.min_accuracy_heldout_prompts=0.6"])
    flow.run_steps(recipe, steps(recipe))
    assert performed[-3:] == ["reward", method, "evaluate"]


def test_a_plan_for_a_stage_has_what_it_needs() -> None:
    recipe = load_recipe(str(TINY))
    assert [row.stage for row in plan(recipe, "sft")] == needed(steps(recipe), "sft")
    with pytest.raises(ConfigError, match="no stage 'sftt'; it has town, corpus"):
        plan(recipe, "sftt")


@pytest.mark.parametrize("stage", ["labeling", "comparisons", "reward", ""])
def test_stages_after_labelling_are_refused_when_nothing_is_judged(stage: str) -> None:
    nothing = ["labeling.rankings.prompts=0", "labeling.pairwise.prompts=0", "labeling.demonstrations.prompts=3"]
    overrides = [word for option in nothing for word in ("--set", option)]
    result = CliRunner().invoke(app, ["run", str(TINY), "--plan", *(["--stage", stage] if stage else []), *overrides])
    assert isinstance(result.exception, ConfigError) and "demonstrations only" in str(result.exception)
    assert CliRunner().invoke(app, ["run", str(TINY), "--plan", "--stage", "sft", *overrides]).exit_code == 0


def test_a_plan_names_the_options_that_are_ignored() -> None:
    options = ["--set", "align.method=kto", "--set", "align.kto.max_length_tokens=96"]
    rules = ["--set", "align.rules=[{name: safety}]"]
    result = CliRunner().invoke(app, ["run", str(TINY), "--plan", *options, *rules])
    assert result.exit_code == 0 and "align.rules is ignored: align.method is kto" in result.output
