"""`rlhf compare`: two policies side by side, in a table, a picture and a file with the prompts that they share."""

import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.errors import ConfigError
from flows.cli.main import app
from flows.releases.compare import compare
from flows.tracking.links import compare_page
from tests.flows.releases.world import BETTER, GOOD, finish


def test_two_versions_side_by_side(home: Path) -> None:
    finish(GOOD)
    other = finish(BETTER, version=2, tax=2.1)
    shown = CliRunner().invoke(app, ["compare", "tiny-policy/2", "tiny-policy@candidate"], env={"COLUMNS": "200"})
    assert isinstance(shown.exception, ConfigError) and "are both release" in str(shown.exception)
    shown = CliRunner().invoke(app, ["compare", other["release"], "tiny-policy/1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "tiny-policy/2 beats tiny-policy/1 on 1.000 of 20 decided prompts" in shown.output
    rows = [line.split("│")[1:4] for line in shown.output.splitlines() if line.count("│") == 4]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["held-out loss"] == ["2.100", "2.000"] and cells["version"] == ["2", "1"]
    assert cells["score"][0].startswith("0.500 (") and cells["gate"] == ["passed", "passed"]
    directory = home / "compare" / "tiny-policy-2-vs-tiny-policy-1"
    assert f"picture: {directory / 'compare.png'}" in shown.output.replace("\n", "")
    width, height = struct.unpack(">II", (directory / "compare.png").read_bytes()[16:24])
    assert width > height > 300
    text = (directory / "compare.md").read_text(encoding="utf-8")
    assert text.count("- **tiny-policy/2** (reward +1.90, gold 0.90): policy says") == 20 and "<script" not in text


def test_releases_that_share_no_prompts_are_still_shown(home: Path) -> None:
    finish(GOOD)
    finish(BETTER, version=2, seed=1, prompts=[f"q{number}" for number in range(20)])
    compared = compare("tiny-policy/2", "tiny-policy/1")
    assert compared.wins.win_rate is None and "they share 0 of 20 held-out prompts" in compared.wins.sentence()
    with pytest.raises(ConfigError, match="is not a model version"):
        compare("tiny policy/2", "tiny-policy/1")


def test_mlflow_s_comparison_has_the_name_in_first_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_MLFLOW_PAGES", "http://reviewer:secret@mlflow.example/")
    assert compare_page("town-policy", {"1": "a", "2": "b"}) == (
        "http://mlflow.example/#/compare-model-versions?name=%22town-policy%22"
        "&runs=%7B%221%22%3A%22a%22%2C%222%22%3A%22b%22%7D&workflowType=machine_learning"
    )
