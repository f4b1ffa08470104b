"""Two policies on the held-out prompts that their releases share, from the responses that both releases logged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from alignment.config.gates import ChampionGate
from alignment.intervals import TIE_MARGIN, win_rate
from alignment.records import Record
from flows.releases.report import read_manifest
from flows.releases.samples import Samples, read_samples, scores
from flows.releases.trace import stage_output
from flows.releases.versions import release_run_of
from flows.tracking.registry import name_and_number
from flows.tracking.runs import TAG_STAGE_RUN

FEWEST_SHARED = 0.5  # of the held-out prompts: the shared ones of two seeds are no random part of all


@dataclass(frozen=True)
class Release:
    """A release: its manifest, and where the output of its stage `evaluate` is; it may have to be downloaded."""

    manifest: Mapping[str, Any]
    evaluation: Callable[[], Path]

    @property
    def policy(self) -> str:
        """The policy as NAME/VERSION."""
        return str(self.manifest["models"]["policy"]).removeprefix("models:/")

    @cached_property
    def samples(self) -> Samples:
        """The responses to the held-out prompts."""
        return read_samples(self.evaluation())

    def same(self, other: "Release", stage: str) -> bool:
        """Whether both have the same output of a stage."""
        keys, others = (release.manifest.get("keys", {}) for release in (self, other))
        return stage in keys and keys[stage] == others.get(stage)


def read_release(run: Run) -> Release:
    """A release from the pipeline's run."""
    evaluation = run.data.tags.get(f"{TAG_STAGE_RUN}evaluate", "")
    return Release(read_manifest(run), lambda: stage_output(evaluation))


def release_of(model: str) -> Release:
    """The newest release with a version, "NAME/VERSION". Raises ArtifactError when there is none."""
    return read_release(release_run_of(*name_and_number(model)))


class HeadToHead(Record):
    """How one policy does against another; `problem` says why they cannot be compared.

    `win_rate` is on the `shared` of all `prompts`, by gold `score` or by `reward`; `tax_ratio` is None between other
    texts or tokenizers.
    """

    against: str
    prompts: int = 0
    shared: int = 0
    by: str = ""
    win_rate: dict[str, float] | None = None
    tax_ratio: float | None = None
    problem: str = ""

    def sentence(self) -> str:
        """The comparison in words."""
        if self.win_rate is None:
            return f"cannot be compared with {self.against}: {self.problem}"
        win, by = self.win_rate, "gold judge" if self.by == "score" else "reward model"
        tax = "" if self.tax_ratio is None else f"; held-out loss {self.tax_ratio:.3f} of its"
        return (
            f"beats {self.against} on {win['rate']:.3f} of {win['decided']:.0f} decided prompts by the {by} (95 % "
            f"interval {win['low']:.3f} to {win['high']:.3f}; {self.shared} of {self.prompts} held-out prompts are "
            f"shared){tax}"
        )

    def missed(self, gate: ChampionGate) -> list[str]:
        """Why this is not enough to replace the champion."""
        if gate.min_win_rate_low is None:
            return []
        if self.win_rate is None:
            return [f"it {self.sentence()}; the champion stands"]
        low, missed = self.win_rate["low"], []
        if not low >= gate.min_win_rate_low:
            missed.append(
                f"champion_gate.min_win_rate_low: {low:.3f}, missed {gate.min_win_rate_low} by "
                f"{gate.min_win_rate_low - low:.3f}: it {self.sentence()}"
            )
        if gate.max_tax_ratio is not None and self.tax_ratio is not None and self.tax_ratio > gate.max_tax_ratio:
            missed.append(
                f"champion_gate.max_tax_ratio: {self.tax_ratio:.3f}, missed {gate.max_tax_ratio} by "
                f"{self.tax_ratio - gate.max_tax_ratio:.3f} against {self.against}"
            )
        return missed


def head_to_head(ours: Release, theirs: Release) -> HeadToHead:
    """Compare two releases' policies. Raises ArtifactError when the responses of one are no longer there."""
    by, margin = ("score", TIE_MARGIN) if ours.manifest.get("gold") and theirs.manifest.get("gold") else ("reward", 0.0)
    mine, other = (scores(release.samples, "policy", by) for release in (ours, theirs))
    shared = len(mine.keys() & other.keys())
    comparison = HeadToHead(
        against=theirs.policy, prompts=len(mine), shared=shared, by=by, tax_ratio=_tax_ratio(ours, theirs)
    )
    if shared < FEWEST_SHARED * max(len(mine), 1):
        problem = (
            f"they share {shared} of {len(mine)} held-out prompts, since the prompts of other seeds or data are others"
        )
        return comparison.model_copy(update={"problem": problem})
    if by == "reward" and not ours.same(theirs, "reward"):
        problem = "there is no gold judge, and the rewards of two reward models are on different scales"
        return comparison.model_copy(update={"problem": problem})
    return comparison.model_copy(update={"win_rate": win_rate(mine, other, margin)})


def _tax_ratio(ours: Release, theirs: Release) -> float | None:
    """Held-out loss, divided by theirs; None if it was measured on other text or in other tokens."""
    tokens = "tokenizer" if "tokenizer" in ours.manifest.get("keys", {}) else "pretrain"
    if not (ours.same(theirs, "corpus") and ours.same(theirs, tokens)):
        return None
    return float(ours.manifest["tax"]["policy"] / theirs.manifest["tax"]["policy"])
