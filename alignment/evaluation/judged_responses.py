"""Answers of a model to held-out prompts, with all that is known of each: reward, distance to SFT, gold verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.stages import EvaluationConfig
from alignment.criteria import CRITERION_NAMES
from alignment.errors import DataError
from alignment.models.ensembles import Ensemble
from alignment.models.generation import Sample, generate
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.scalar import reward_scores
from alignment.models.tokenizer import decode_response, prompt_tokens
from alignment.records import Prompt

TOKEN_BUDGET = 8192
Judge = Callable[[Prompt, str], Any]


@dataclass(frozen=True)
class Answer:
    """One response with everything that is known of it; without a judge `criteria` is empty and `score` None."""

    prompt_id: str
    kind: str
    prompt: str
    response: str
    tokens: int
    ended: bool
    reward: float
    kl: float
    criteria: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Bench:
    """What every model is measured with."""

    config: EvaluationConfig
    tokenizer: PreTrainedTokenizerBase
    sft: PreTrainedModel
    reward: PreTrainedModel | Ensemble
    judge: Judge | None
    seed: int


def fitting(rows: Sequence[Prompt], bench: Bench) -> list[Prompt]:
    """Held-out prompts that leave room for an answer. Raises DataError when none does."""
    room = int(bench.sft.config.max_position_embeddings) - bench.config.max_new_tokens
    kept = [row for row in rows if len(prompt_tokens(bench.tokenizer, row.messages)) <= room]
    if not kept:
        raise DataError(
            f"none of {len(rows)} held-out prompts leaves room for {bench.config.max_new_tokens} tokens; "
            "lower `evaluation.max_new_tokens` or raise `prompts.heldout_share`"
        )
    return kept


def answer_all(bench: Bench, model: PreTrainedModel, rows: Sequence[Prompt]) -> list[Answer]:
    """Sample, score and judge `samples_per_prompt` answers to every prompt."""
    tokenizer, config = bench.tokenizer, bench.config
    repeated = [row for row in rows for _ in range(config.samples_per_prompt)]
    turns = [prompt_tokens(tokenizer, row.messages) for row in repeated]
    samples = generate(
        model,
        turns,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        eos_token_ids=[int(tokenizer.eos_token_id)],
        pad_token_id=int(tokenizer.pad_token_id),
        generator=torch.Generator(device=model.device).manual_seed(bench.seed),
    )
    sequences = [turn + sample.tokens for turn, sample in zip(turns, samples, strict=True)]
    rewards = reward_scores(bench.reward, sequences, [len(turn) for turn in turns]).tolist()
    kls = sequence_kl(bench.sft, turns, samples, config.temperature)
    return [judged(bench, *fields) for fields in zip(repeated, samples, rewards, kls, strict=True)]


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


def judged(bench: Bench, row: Prompt, sample: Sample, reward: float, kl: float) -> Answer:
    """An answer with the judge's verdict, where there is a judge."""
    text = decode_response(bench.tokenizer, sample.tokens)
    gold: dict[str, Any] = {}
    if bench.judge is not None:
        verdict = bench.judge(row, text)
        gold = {"criteria": dict(verdict.scores), "score": verdict.score, "why": "; ".join(verdict.reasons)}
    return Answer(row.id, row.kind, row.text, text, len(sample.tokens), sample.ended, reward, kl, **gold)


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Means over answers; the gold score and that of each criterion only where there is a judge."""
    names = ["reward", "tokens", "ended", "kl"]
    means = {name: fmean(float(getattr(answer, name)) for answer in answers) for name in names}
    scores = [answer.score for answer in answers if answer.score is not None]
    if not scores:
        return means
    by_criterion = {name: fmean(answer.criteria[name] for answer in answers) for name in CRITERION_NAMES}
    return means | by_criterion | {"score": fmean(scores)}
