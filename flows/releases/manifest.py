"""The manifest of a release, and the gates of the reward model and of the release."""

import json
from collections.abc import Mapping
from typing import Any

from alignment.artifacts import Artifact
from alignment.config.stages import ReleaseGate, RewardGate
from alignment.criteria import CRITERION_NAMES, GOLD_FIGURES
from alignment.errors import GateError
from flows.recipe.schema import Recipe

MODELS = ("base", "sft", "policy")
REWARD_FIGURES = (
    "accuracy_heldout_prompts",
    "accuracy_heldout_annotators",
    "ece",
    "length_correlation",
    "longer_wins",
    "bag_of_words_accuracy",
)
ASIDE = ("rejected", "quarantined", "set_aside", "too_short", "exact_copies", "near_copies", "prompts_without_choice")


def release_manifest(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The figures of a release; those that were not measured (no gold judge, no annotators) are null."""
    evaluation = json.loads(artifacts["evaluate"].file("evaluation.json").read_text(encoding="utf-8"))
    reward = artifacts["reward"].result()
    gold = {name: _pick(figures, GOLD_FIGURES) for name, figures in evaluation["models"].items()}
    by_criterion = {k: v for k, v in reward.items() if k.startswith("accuracy_heldout") and k not in REWARD_FIGURES}
    return {
        "release": f"{recipe.name}-{recipe.seed}-{artifacts[recipe.align.method].key[:8]}",
        "recipe": recipe.name,
        "seed": recipe.seed,
        "method": recipe.align.method,
        "judge": evaluation["judge"],
        "gold": gold if evaluation["judge"] == "gold" else None,
        "win_rate_vs_sft": evaluation["win_rate_vs_sft"],
        "kl_to_sft": evaluation["kl_to_sft"],
        "tax": {name: evaluation["tax"][name] for name in MODELS},
        "reward": {name: figures["reward"] for name, figures in evaluation["models"].items()},
        "length_tokens": {name: figures["tokens"] for name, figures in evaluation["models"].items()},
        "reward_model": {**_pick(reward, REWARD_FIGURES), **_agreement(artifacts), "by_criterion": by_criterion},
        "comparisons": int(artifacts["comparisons"].result()["comparisons"]),
        "put_aside": unused_rows(artifacts),
        "by_kind": evaluation["by_kind"],
        "curve": evaluation["curve"],
        "curve_fit": evaluation["curve_fit"],
        "chosen_step": evaluation["chosen_step"],
        "best_of_n": evaluation["best_of_n"],
        "models": {name: artifacts[stage].model for name, stage in _model_stages(recipe).items()},
        "seconds": {stage: artifact.seconds for stage, artifact in artifacts.items()},
        "cached": {stage: artifact.cached for stage, artifact in artifacts.items()},
    }


def unused_rows(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, int]]:
    """Number of unused rows by stage and reason, such as invalid, duplicate or longer than the context."""
    counts = {
        stage: {name: int(value) for name, value in artifact.result().items() if name in ASIDE or "too_long" in name}
        for stage, artifact in artifacts.items()
    }
    return {stage: {name: count for name, count in rows.items() if count} for stage, rows in counts.items()}


def _model_stages(recipe: Recipe) -> dict[str, str]:
    return {"base": "pretrain", "sft": "sft", "reward": "reward", "policy": recipe.align.method}


def _pick(figures: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: figures.get(name) for name in names}


def _agreement(artifacts: Mapping[str, Artifact]) -> dict[str, float | None]:
    """Agreement between annotators; null for comparisons from files."""
    if "labeling" not in artifacts:
        return {"annotator_agreement": None, "heldout_annotator_agreement": None}
    people = json.loads(artifacts["labeling"].file("annotators.json").read_text(encoding="utf-8"))
    rows = artifacts["comparisons"].file("heldout_annotators.jsonl").read_text(encoding="utf-8").splitlines()
    heldout = {json.loads(row)["annotator_id"] for row in rows}
    shares = [annotator["agreement_with_others"] for annotator in people if annotator["annotator_id"] in heldout]
    known = [share for share in shares if share is not None]
    return {
        "annotator_agreement": artifacts["labeling"].result().get("agreement"),
        "heldout_annotator_agreement": sum(known) / len(known) if known else None,
    }


def check_reward_gate(reward: Artifact, gate: RewardGate) -> None:
    """Raise GateError when the reward model is too inaccurate to optimise against."""
    accuracy = reward.result()["accuracy_heldout_prompts"]
    if not accuracy >= gate.min_accuracy_heldout_prompts:
        raise GateError(
            f"the reward model orders {accuracy:.3f} of the held-out pairs as people did, and reward_gate."
            f"min_accuracy_heldout_prompts asks for {gate.min_accuracy_heldout_prompts}: collect more comparisons, "
            "train it longer, or lower the gate"
        )


def missed_gates(gate: ReleaseGate, manifest: Mapping[str, Any]) -> list[str]:
    """The limits of the release gate that were missed, each with its value and by how much."""
    figures = gate_figures(manifest)
    missed = []
    for name, limit in gate:
        if limit is None:
            continue
        value, sign = figures[name], 1 if name.startswith("min_") else -1
        if value is None:
            missed.append(f"release_gate.{name} {limit} was not measured (no gold judge)")
        elif not sign * (value - limit) >= 0:  # NaN passes no gate
            missed.append(f"release_gate.{name}: {value:.3f}, missed {limit} by {abs(value - limit):.3f}")
    return missed


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
