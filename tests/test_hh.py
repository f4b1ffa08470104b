"""The recipe `hh`, reduced, on external data and an external model; skipped without the data."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.pipeline.flow import rlhf
from flows.recipe.schema import check_files, load_recipe
from flows.releases.report import report_view
from tests.conftest import SHARED_DATA

FILES = ("stories260k-hf", "tinyshakespeare", "self-instruct", "webquestions", "hh-rlhf-harmless-test")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(not all((SHARED_DATA / name).is_dir() for name in FILES), reason=f"no data in {SHARED_DATA}"),
]
HH = "corpus.sources.0.path"
SMALL = {
    "pretrain.epochs": 0,
    "demonstrations.sources.0.limit": 20,
    "demonstrations.sources.1.limit": 60,
    "prompts.sources.0.limit": 60,
    "comparisons.sources.0.limit": 120,
    "comparisons.max_rejected_share": 0.02,
    "sft.max_length_tokens": 160,
    "reward.max_length_tokens": 160,
    "reward.epochs": 1,
    "ppo.steps": 2,
    "ppo.batch_size": 8,
    "ppo.minibatch_size": 4,
    "ppo.max_new_tokens": 16,
    "ppo.snapshot_every_steps": 1,
    "evaluation.max_new_tokens": 16,
    "evaluation.prompts": 6,
    "evaluation.curve_prompts": 2,
    "reward_gate.min_accuracy_heldout_prompts": 0,
}


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first scenes of the corpus: enough text to measure a loss on."""
    path = tmp_path_factory.mktemp("corpus") / "input.txt"
    path.write_text((SHARED_DATA / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:20000])
    return path


@pytest.fixture(scope="module")
def release(workplace: Path, play: Path) -> dict[str, Any]:
    """The manifest of the cut-down run."""
    small = [f"{name}={value}" for name, value in SMALL.items()]
    recipe = load_recipe("hh", [*small, f"data_root={SHARED_DATA}", f"{HH}={play}"])
    check_files(recipe)
    return rlhf(recipe)


def output(release: dict[str, Any], stage: str, name: str, workplace: Path) -> list[dict[str, Any]]:
    """The rows of a file of a stage's output."""
    (place,) = workplace.glob(f"artifacts/{stage}-*")
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def test_real_data_goes_through_every_stage(release: dict[str, Any]) -> None:
    assert list(release["cached"]) == [
        "corpus",
        "pretrain",
        "demonstrations",
        "prompts",
        "sft",
        "comparisons",
        "reward",
        "ppo",
        "evaluate",
    ]
    assert release["comparisons"] == 120
    assert release["models"].keys() == {"base", "sft", "reward", "policy"}
    assert 0 <= release["reward_model"]["accuracy_heldout_prompts"] <= 1
    assert 0 <= release["reward_model"]["bag_of_words_accuracy"] <= 1
    assert release["reward_model"]["annotator_agreement"] is None  # nobody knows who judged what


def test_without_a_gold_judge_nobody_becomes_champion_and_the_report_says_why(release: dict[str, Any]) -> None:
    assert release["gold"] is None and release["judge"] == "reward model"
    assert not release["gate"]["passed"]
    assert "release_gate.min_win_rate 0.5 was not measured (no gold judge)" in release["gate"]["missed"]
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report_view(release))
    text = captured.get()
    for said in ("No gold judge", "by the reward model", "bag of words accuracy", "candidate, not champion"):
        assert said in text


def test_broken_rows_are_named_and_long_ones_counted(release: dict[str, Any], workplace: Path) -> None:
    (broken,) = output(release, "comparisons", "rejected.jsonl", workplace)
    assert broken["file"].endswith("harmless-base_test.jsonl.gz")
    assert (broken["line"], broken["reason"]) == (87, "an empty response")
    assert release["put_aside"]["comparisons"] == {"rejected": 1}
    assert release["put_aside"]["reward"]["too_long"] > 0
    assert release["put_aside"]["sft"]["too_long"] > 0
    tested = output(release, "reward", "tested.jsonl", workplace)
    assert tested and len(tested) + release["put_aside"]["reward"].get("too_long_heldout_prompts", 0) < 120


def test_the_imported_model_can_talk(release: dict[str, Any], workplace: Path) -> None:
    from alignment.models.tokenizer import load_tokenizer

    (place,) = workplace.glob("artifacts/pretrain-*")
    tokenizer = load_tokenizer(place / "model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and "<|assistant|>" in str(tokenizer.chat_template)
    assert "PAD was missing" in (place / "notes" / "imported.txt").read_text()
