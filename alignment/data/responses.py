"""Stage `responses`: K sampled responses to each prompt, anonymized for labelling."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.stages import SamplingConfig
from alignment.data.prompts import training_prompts
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.architecture import longest_sequence
from alignment.models.generation import Sample, generate
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import decode_response
from alignment.records import Prompt, Response, ResponseSet, stable_id, write_records


class SamplingOptions(Protocol):
    """Options of a stage that samples responses."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def batch_size(self) -> int: ...


def sample_responses(
    config: SamplingConfig, out: Path, journal: Journal, *, seed: int, model: Path, prompts: Path
) -> dict[str, float]:
    """Sample from `model/` for the first training prompts and write `responses.jsonl`.

    Duplicate responses to a prompt are dropped, and so is a prompt with fewer than two distinct responses. Ids are
    opaque and the order is shuffled.
    """
    policy, tokenizer = load_causal_model(model / "model"), load_tokenizer(model / "model")
    context = longest_sequence(policy)
    fitting, too_long = training_prompts(prompts, tokenizer, context, config.max_new_tokens, "sampling.max_new_tokens")
    chosen = fitting[: config.prompts]
    samples = sample(
        config, policy, tokenizer, [ids for _, ids in chosen for _ in range(config.responses_per_prompt)], seed
    )
    texts = [decode_response(tokenizer, sample.tokens) for sample in samples]
    sets = []
    for number, (prompt, _) in enumerate(chosen):
        start = number * config.responses_per_prompt
        distinct = [text for text in dict.fromkeys(texts[start : start + config.responses_per_prompt]) if text]
        if len(distinct) >= 2:
            sets.append(ResponseSet(prompt=prompt, responses=blind(prompt, distinct, seed)))
    if not sets:
        raise DataError("no prompt has two different responses; raise `sampling.temperature`, or give more prompts")
    write_records(out / "responses.jsonl", sets)
    counts = {
        "prompts": float(len(sets)),
        "responses": float(sum(len(s.responses) for s in sets)),
        "ended_share": sum(s.ended for s in samples) / len(samples),
        "mean_length_tokens": sum(len(s.tokens) for s in samples) / len(samples),
        "prompts_too_long": float(too_long),
        "prompts_without_choice": float(len(chosen) - len(sets)),
    }
    journal.log(counts, step=0)
    return counts


def sample(
    config: SamplingOptions,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    seed: int,
) -> list[Sample]:
    """Sample a response to each of the prompts."""
    return generate(
        model,
        prompts,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        batch_size=config.batch_size,
        eos_token_ids=[int(tokenizer.eos_token_id)],
        pad_token_id=int(tokenizer.pad_token_id),
        generator=torch.Generator(device=model.device).manual_seed(seed),
    )


def blind(prompt: Prompt, texts: list[str], seed: int) -> tuple[Response, ...]:
    """Responses under opaque ids, in a seeded random order."""
    responses = [Response(id=stable_id("r", prompt.id, text), text=text) for text in texts]
    random.Random(f"{seed}-{prompt.id}").shuffle(responses)
    return tuple(responses)
