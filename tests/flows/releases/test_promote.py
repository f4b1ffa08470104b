"""Promotion of registered versions: the release gate is enforced unless a reason is given."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from alignment.config.stages import SFTConfig
from alignment.errors import ArtifactError, ConfigError, GateError
from flows.releases.promote import TAG_DESPITE, promote_version
from flows.releases.report import log_release
from flows.tracking import runs
from tests.flows.tiny import run_stage, text_model

MISSED = "release_gate.min_win_rate: 0.500, missed 0.7 by 0.200"


def release(name: str, *, missed: tuple[str, ...] = (), **config: Any) -> str:
    """A release whose policy is a registered version; "policy/NUMBER"."""
    with runs.pipeline_run(name, recipe=SFTConfig()) as run_id:
        made = run_stage("ppo", text_model, config=SFTConfig(**config), model="policy", parent=run_id)
        log_release(run_id, {"release": name, "gate": {"passed": not missed, "missed": list(missed)}})
    assert made.model is not None
    return made.model.removeprefix("models:/")


def champion() -> str:
    return str(MlflowClient().get_model_version_by_alias("policy", "champion").version)


def test_a_gate_holds_until_somebody_says_why_not(home: Path) -> None:
    good, bad = release("good"), release("bad", missed=(MISSED,), epochs=2)
    assert promote_version(good) == f"models:/{good}" and champion() == "1"
    with pytest.raises(GateError, match=r"policy/2 is not promoted: release bad missed its gate: .*missed 0\.7 by"):
        promote_version(bad)
    with pytest.raises(ConfigError, match="'ok' is too short: give the reason in 3 words or more"):
        promote_version(bad, despite="ok")
    assert champion() == "1"
    promote_version(bad, despite="the judges were asleep")
    assert champion() == "2"
    tags = MlflowClient().get_model_version("policy", "2").tags
    assert tags[TAG_DESPITE].startswith("the judges were asleep (release bad missed its gate")
    assert TAG_DESPITE not in MlflowClient().get_model_version("policy", "1").tags


def test_the_newest_release_of_a_version_counts(home: Path) -> None:
    again = release("first", missed=(MISSED,))
    assert release("second") == again  # the same policy, found done, in a release with another gate
    assert promote_version("policy/1", alias="shadow") == "models:/policy/1"
    assert promote_version("policy@shadow") == "models:/policy/1" and champion() == "1"


def test_a_version_without_a_release_or_that_is_not_there_is_named(home: Path) -> None:
    run_stage("ppo", text_model, config=SFTConfig(), model="policy")
    with pytest.raises(GateError, match="no release contains policy/1; run its recipe to the end"):
        promote_version("policy/1")
    with pytest.raises(ArtifactError, match="policy has versions 1"):
        promote_version("policy/9")


def test_the_command_promotes(home: Path) -> None:
    from flows.cli import main as cli

    release("good")
    shown = CliRunner().invoke(cli.app, ["promote", "policy/1", "--alias", "shadow"])
    assert shown.exit_code == 0, shown.output
    assert "models:/policy/1 is now shadow" in shown.output
