"""Two policies on the held-out prompts that their releases share, from the responses that both releases logged."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from alignment.artifacts import Artifact
from alignment.config.base import Config
from alignment.config.gates import ChampionGate
from alignment.errors import ArtifactError
from alignment.intervals import TIE_MARGIN, win_rate
from alignment.records import Record, read_lines
from alignment.stage import Step
from alignment.stages import RESCORE
from flows.home import home_directory
from flows.releases.report import read_manifest
from flows.releases.samples import Samples, read_samples, scores
from flows.releases.trace import stage_output
from flows.releases.versions import release_run_of
from flows.tracking.registry import name_and_number
from flows.tracking.runner import find, run_step
from flows.tracking.runs import TAG_STAGE_RUN

SCORES = "scores.jsonl"  # of the stage `rescore`
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
        other = rescored(ours, theirs)
    return comparison.model_copy(update={"win_rate": win_rate(mine, other, margin)})


def rescored(ours: Release, theirs: Release) -> dict[str, list[float]]:
    """The rewards of their responses by our reward model, by prompt: those of theirs are on another scale."""
    sources = {"evaluation": (theirs, "evaluate"), "prompts": (ours, "prompts"), "reward": (ours, "reward")}
    inputs = {name: _output(release, stage) for name, (release, stage) in sources.items()}
    step = Step(RESCORE, Config(), {name: stage for name, (_, stage) in sources.items()})
    rewards: dict[str, list[float]] = defaultdict(list)
    for _, row, reason in read_lines(run_step(step, inputs).file(SCORES)):
        if reason or not isinstance(row, dict):
            raise ArtifactError(f"the rewards of {theirs.policy} by the reward model of {ours.policy} are damaged")
        rewards[str(row["prompt_id"])].append(float(row["reward"]))
    return rewards


def _output(release: Release, stage: str) -> Artifact:
    key = release.manifest.get("keys", {}).get(stage, "")
    output = find(stage, key, home_directory()) if key else None
    if output is None:
        raise ArtifactError(
            f"the output of stage '{stage}' of {release.manifest['release']} is gone; run its recipe again"
        )
    return output


def _tax_ratio(ours: Release, theirs: Release) -> float | None:
    """Held-out loss, divided by theirs; None if it was measured on other text or in other tokens."""
    tokens = "tokenizer" if "tokenizer" in ours.manifest.get("keys", {}) else "pretrain"
    if not (ours.same(theirs, "corpus") and ours.same(theirs, tokens)):
        return None
    return float(ours.manifest["tax"]["policy"] / theirs.manifest["tax"]["policy"])
