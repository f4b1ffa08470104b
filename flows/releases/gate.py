"""The gates: of the reward model, of a release, and of a release against the champion that stands."""

from collections.abc import Mapping
from typing import Any

from alignment.artifacts import Artifact
from alignment.config.gates import ReleaseGate, RewardGate
from alignment.criteria import CRITERION_NAMES
from alignment.errors import GateError
from alignment.records import Record

NO_GATE = (
    "the recipe has no release_gate, so nothing says what a champion must achieve: write limits into the recipe, as in "
    "release_gate: {min_win_rate: 0.6, max_tax_ratio: 1.05}, or without a gold judge {max_tax_ratio: 1.05}"
)


class Check(Record):
    """A limit of the release gate beside its figure; None where it was not measured."""

    name: str
    limit: float
    value: float | None

    @property
    def margin(self) -> float:
        """By how much the figure is on the right side of the limit; NaN where it was not measured."""
        if self.value is None:
            return float("nan")
        return self.value - self.limit if self.name.startswith("min_") else self.limit - self.value

    @property
    def passed(self) -> bool:
        """Whether the limit is kept; NaN passes no gate."""
        return self.margin >= 0

    def sentence(self) -> str:
        """What was missed and by how much."""
        if self.value is None:
            return f"{self.name} {self.limit} was not measured (no gold judge)"
        return f"{self.name}: {self.value:.3f}, missed {self.limit} by {abs(self.margin):.3f}"


def check_release(gate: ReleaseGate, manifest: Mapping[str, Any]) -> list[Check]:
    """Every limit of the release gate that is set, beside its figure."""
    figures = gate_figures(manifest)
    return [Check(name=name, limit=limit, value=figures[name]) for name, limit in gate.limits.items()]


def missed_gates(gate: ReleaseGate, manifest: Mapping[str, Any]) -> list[str]:
    """Why a release does not pass its gate: a sentence for each missed limit, or that there is no gate."""
    checks = check_release(gate, manifest)
    return [f"release_gate.{check.sentence()}" for check in checks if not check.passed] if checks else [NO_GATE]


def gate_figures(manifest: Mapping[str, Any]) -> dict[str, float | None]:
    """The figure that each option of a release gate limits, by the option's name; None for one that was not measured.

    Every criterion has its rate, `min_NAME`, and SFT's rate minus the policy's, `max_NAME_drop`. Wins by the reward
    model's own score do not count as measured: PPO was trained to raise that score.
    """
    gold, tax, win = manifest["gold"] or {}, manifest["tax"], manifest["win_rate_vs_sft"]
    if win.get("by") == "reward":
        win = {"rate": None, "low": None}
    figures = {
        "min_win_rate": win["rate"],
        "min_win_rate_low": win["low"],
        "max_tax_ratio": tax["policy"] / tax["sft"],
    }
    for criterion in CRITERION_NAMES:
        policy, sft = (gold.get(model, {}).get(criterion) for model in ("policy", "sft"))
        figures[f"min_{criterion}"] = policy
        figures[f"max_{criterion}_drop"] = None if policy is None or sft is None else sft - policy
    return figures


def check_reward_gate(reward: Artifact, gate: RewardGate) -> None:
    """Raise GateError when the reward model is too inaccurate to optimise against."""
    accuracy = reward.result()["accuracy_heldout_prompts"]
    if not accuracy >= gate.min_accuracy_heldout_prompts:
        raise GateError(
            f"the reward model orders {accuracy:.3f} of the held-out pairs as people did, and reward_gate."
            f"min_accuracy_heldout_prompts asks for {gate.min_accuracy_heldout_prompts}: collect more comparisons, "
            "train it longer, or lower the gate"
        )
