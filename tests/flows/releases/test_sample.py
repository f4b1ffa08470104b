"""`rlhf sample`: registered versions and checkpoints, and a directory that is of one command only."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.config.stages import SFTConfig
from alignment.errors import ArtifactError, ConfigError
from flows.cli.main import app
from flows.releases.sample import find_model
from flows.tracking import registry
from tests.flows.tiny import run_stage, text_model


def test_a_registered_version_is_read_where_it_was_published_or_from_mlflow(home: Path) -> None:
    made = run_stage("ppo", text_model, config=SFTConfig(), model="policy")
    assert made.model is not None
    registry.set_alias(made.model, "champion")
    champion = find_model("policy@champion", home)
    assert (champion.name, champion.directory) == ("policy-1", made.path / "model")
    shutil.rmtree(made.path)
    assert (find_model("policy", home).directory / "config.json").exists()
    with pytest.raises(ArtifactError, match="policy has versions 1"):
        find_model("policy/2", home)
    with pytest.raises(ConfigError, match="a directory without a config"):
        find_model(str(home), home)


def test_the_command_samples_and_refuses_other_options_in_the_same_directory(home: Path) -> None:
    text_model(home / "checkpoint", _Journal())
    (home / "prompts.jsonl").write_text('{"prompt": "Who are you?"}\n{"prompt": "Why?"}\n')
    command = ["sample", str(home / "checkpoint"), "--prompts", "prompts.jsonl", "--max-new-tokens", "6"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    (directory,) = (home / "responses").iterdir()
    assert "2 prompts" in shown.output and f"labeling.responses=[{directory}]" in shown.output
    assert CliRunner().invoke(app, command).exit_code == 0  # nothing is left to do
    other = CliRunner().invoke(app, [*command, "--seed", "1", "--out", str(directory)])
    assert isinstance(other.exception, ConfigError) and "choose another --out" in str(other.exception)


class _Journal:
    """A journal that writes nothing."""

    def log(self, *_: object) -> None: ...
