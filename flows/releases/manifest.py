"""The manifest of a release: its figures, data and costs."""

import json
from collections.abc import Mapping
from typing import Any

from alignment.artifacts import Artifact
from alignment.criteria import GOLD_FIGURES
from flows.recipe.schema import SOURCES, Recipe
from flows.releases.samples import excerpt, intervals, read_samples
from flows.tracking.provenance import git_commit
from labeling.reports.card import Card

MODELS = ("base", "sft", "policy")
SHOWN_PROMPTS = 5
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
    samples, reward = read_samples(artifacts["evaluate"].path), artifacts["reward"].result()
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
        "intervals": intervals(samples),
        "samples": excerpt(samples, SHOWN_PROMPTS),
        "data": data_of(recipe, artifacts),
        "labels": labels_of(recipe, artifacts),
        "compute": _compute(artifacts[recipe.align.method]),
        "git_commit": git_commit(),
        "intended_use": recipe.registry.intended_use,
        "limits": recipe.registry.limits,
        "keys": {stage: artifact.key for stage, artifact in artifacts.items()},
        "runs": {stage: artifact.run_id for stage, artifact in artifacts.items()},
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


def data_of(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """The data by section of the recipe: how many rows of which sources, under which licence."""
    counts = {
        "corpus": _count(artifacts, "corpus", "documents_train"),
        "demonstrations": _count(artifacts, "demonstrations", "demonstrations"),
        "prompts": _count(artifacts, "prompts", "prompts_train"),
        "comparisons": _count(artifacts, "comparisons", "comparisons"),
    }
    sources = {section: [source.path for source in getattr(recipe, section).sources] for section in SOURCES}
    licences = {str(section): licence for section, licence in recipe.registry.licences.items()}
    return {
        section: {"count": count, "sources": sources[section], "licence": licences.get(section, "")}
        for section, count in counts.items()
    }


def _count(artifacts: Mapping[str, Artifact], stage: str, figure: str) -> int | None:
    value = artifacts[stage].result().get(figure) if stage in artifacts else None
    return None if value is None else int(value)


def labels_of(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Who judged, how much, and by which version of the guidelines; comparisons from files have no judges here."""
    card_file = artifacts["comparisons"].path / "card.json"
    card = Card.model_validate_json(card_file.read_text(encoding="utf-8")) if card_file.is_file() else None
    return {
        "by": "files" if recipe.labeling is None else recipe.labeling.annotators,
        "annotators": None if card is None else len(card.annotators),
        "annotations": None if card is None else card.annotations,
        "guidelines": {} if card is None else card.guidelines,
        "projects": {} if card is None else card.projects,
        "hours": _hours(artifacts["labeling"]) if "labeling" in artifacts else None,
    }


def _hours(labelled: Artifact) -> float:
    """Hours of judging: each annotator's judgements times the median time that one took."""
    people = json.loads(labelled.file("annotators.json").read_text(encoding="utf-8"))
    return float(sum(row["judgements"] * (row.get("median_lead_time_seconds") or 0.0) for row in people) / 3600)


def _compute(policy: Artifact) -> dict[str, Any]:
    """The device, the precision and the processes that made the policy."""
    path = policy.path / "provenance.json"
    provenance = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(provenance.get("compute") or {})


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
