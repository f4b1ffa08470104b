"""A sampled response with its reward, its KL to SFT and, with a gold judge, its verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from alignment.criteria import CRITERION_NAMES, GOLD_FIGURES
from alignment.models.generation import Sample
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.records import Prompt

TOKEN_BUDGET = 8192
Judge = Callable[[Prompt, str], Any]


@dataclass(frozen=True)
class Gold:
    """A gold judge's verdict: its rating by criterion, the weighted score, and the reasons in words."""

    criteria: Mapping[str, float]
    score: float
    why: str


@dataclass(frozen=True)
class JudgedResponse:
    """One response; `kl` is log π(y|x) − log π_SFT(y|x) in nats, `gold` is None without a judge."""

    prompt_id: str
    kind: str
    prompt: str
    response: str
    tokens: int
    ended: bool
    reward: float
    kl: float
    gold: Gold | None = None

    def row(self) -> dict[str, object]:
        """The response as a flat row of `samples.jsonl`; gold figures are null without a judge."""
        plain = {name: value for name, value in vars(self).items() if name != "gold"}
        if self.gold is None:
            return plain | dict.fromkeys(GOLD_FIGURES) | {"why": ""}
        return plain | {**self.gold.criteria, "score": self.gold.score, "why": self.gold.why}

    def figures(self) -> dict[str, float]:
        """All values that are averaged, by name; gold scores only with a judge."""
        plain = {"reward": self.reward, "tokens": float(self.tokens), "ended": float(self.ended), "kl": self.kl}
        return plain if self.gold is None else plain | {**self.gold.criteria, "score": self.gold.score}


def verdict(judge: Judge, prompt: Prompt, response: str) -> Gold:
    """The gold judge's verdict on a response."""
    judged = judge(prompt, response)
    criteria = {name: float(judged.scores[name]) for name in CRITERION_NAMES}
    return Gold(criteria, float(judged.score), "; ".join(judged.reasons))


@torch.no_grad()
def sequence_kl(
    reference: PreTrainedModel, prompts: Sequence[list[int]], samples: Sequence[Sample], temperature: float
) -> list[float]:
    """log π(y|x) − log π_ref(y|x) of each sampled response, in nats: its mean estimates KL(π‖π_ref)."""
    sequences = [prompt + sample.tokens for prompt, sample in zip(prompts, samples, strict=True)]
    kls = torch.tensor([sum(sample.logprobs) for sample in samples], dtype=torch.float64)
    for batch in scoring_batches(sequences, [len(p) for p in prompts], TOKEN_BUDGET, reference.device):
        kls.index_add_(0, batch.sequence.cpu(), -response_logprobs(reference, batch, temperature).double().cpu())
    return list(kls.tolist())


def means(responses: Sequence[JudgedResponse]) -> dict[str, float]:
    """The mean of each figure over responses."""
    rows = [response.figures() for response in responses]
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
