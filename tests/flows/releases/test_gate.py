"""The gates: each missed figure is reported with its margin; a figure that was not measured fails."""

import json
from pathlib import Path

import pytest

from alignment.artifacts import Artifact
from alignment.config.gates import ReleaseGate, RewardGate
from alignment.errors import GateError
from flows.releases.gate import NO_GATE, Check, check_release, check_reward_gate, missed_gates

GATE = ReleaseGate(min_win_rate=0.6, min_win_rate_low=0.5, min_harmless=0.9, max_truthful_drop=0.05, max_tax_ratio=1.1)


def manifest(rate=0.7, low=0.55, harmless=0.95, truthful=(0.8, 0.78), tax=(2.0, 2.1), gold=True):
    """A manifest that passes; `truthful` and `tax` are those of SFT and policy."""
    scores = {
        "sft": {"truthful": truthful[0], "harmless": 0.5},
        "policy": {"truthful": truthful[1], "harmless": harmless},
    }
    return {
        "gold": scores if gold else None,
        "tax": {"sft": tax[0], "policy": tax[1]},
        "win_rate_vs_sft": {"rate": rate, "low": low, "by": "score" if gold else "reward"},
    }


def test_what_passes_misses_nothing() -> None:
    assert missed_gates(GATE, manifest()) == []


def test_without_a_gate_nothing_passes() -> None:
    assert missed_gates(ReleaseGate(), manifest()) == [NO_GATE]
    assert check_release(ReleaseGate(min_win_rate=0), manifest()) == [Check(name="min_win_rate", limit=0, value=0.7)]


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ({"rate": 0.52}, "release_gate.min_win_rate: 0.520, missed 0.6 by 0.080"),
        ({"low": 0.375}, "release_gate.min_win_rate_low: 0.375, missed 0.5 by 0.125"),
        ({"harmless": 0.85}, "release_gate.min_harmless: 0.850, missed 0.9 by 0.050"),
        ({"truthful": (0.8, 0.5)}, "release_gate.max_truthful_drop: 0.300, missed 0.05 by 0.250"),
        ({"tax": (2.0, 2.5)}, "release_gate.max_tax_ratio: 1.250, missed 1.1 by 0.150"),
    ],
)
def test_each_figure_that_misses_says_which_and_by_how_much(figures, missed) -> None:
    assert missed_gates(GATE, manifest(**figures)) == [missed]


def test_all_misses_are_named_in_order() -> None:
    missed = missed_gates(GATE, manifest(0, 0, 0, (1, 0), (1, 9)))
    names = ["min_win_rate", "min_win_rate_low", "min_harmless", "max_truthful_drop", "max_tax_ratio"]
    assert [line.split(":")[0] for line in missed] == [f"release_gate.{name}" for name in names]


def test_the_limit_itself_passes() -> None:
    limits = {"min_win_rate": 0.5, "min_win_rate_low": 0.25, "min_harmless": 0.75, "max_truthful_drop": 0.25}
    exact = ReleaseGate(**limits, max_tax_ratio=1)
    assert missed_gates(exact, manifest(0.5, 0.25, 0.75, (0.75, 0.5), (2, 2))) == []


def test_a_policy_that_became_more_truthful_passes() -> None:
    assert missed_gates(ReleaseGate(max_truthful_drop=0), manifest(truthful=(0.5, 0.9))) == []


def test_what_was_not_measured_does_not_pass() -> None:
    missed = missed_gates(GATE, manifest(gold=False))  # a win by the reward model's own score is no measurement
    assert missed == [
        "release_gate.min_win_rate 0.6 was not measured (no gold judge)",
        "release_gate.min_win_rate_low 0.5 was not measured (no gold judge)",
        "release_gate.min_harmless 0.9 was not measured (no gold judge)",
        "release_gate.max_truthful_drop 0.05 was not measured (no gold judge)",
    ]
    assert missed_gates(ReleaseGate(max_tax_ratio=1.1), manifest(gold=False)) == []


def test_a_figure_that_is_not_a_number_does_not_pass() -> None:
    lost = float("nan")
    missed = missed_gates(GATE, manifest(lost, lost, lost, (lost, lost), (2.0, lost)))
    assert len(missed) == 5


def reward(directory: Path, **figures: float) -> Artifact:
    (directory / "result.json").write_text(json.dumps(figures))
    return Artifact(stage="reward", key="k", run_id="r", path=directory, digest="d")


def test_a_reward_model_below_its_gate_stops_the_pipeline_in_words(tmp_path) -> None:
    weak = reward(tmp_path, accuracy_heldout_prompts=0.5)
    with pytest.raises(GateError, match=r"orders 0\.500 of the held-out pairs .* asks for 0\.55: collect more"):
        check_reward_gate(weak, RewardGate(min_accuracy_heldout_prompts=0.55))
    check_reward_gate(weak, RewardGate(min_accuracy_heldout_prompts=0.5))
