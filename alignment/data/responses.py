"""Stage `responses`: K sampled responses to each prompt, anonymized for labelling."""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from alignment.config.stages import SamplingConfig
from alignment.data.prompts import encode_prompts
from alignment.distributed.devices import frozen_dtype
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.architecture import longest_sequence
from alignment.models.chat import ChatFormat, load_chat
from alignment.models.encoding import put_aside
from alignment.models.generation import Sample, generate
from alignment.models.scalar import load_causal_model
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
    policy, chat = load_causal_model(model / "model", frozen_dtype()), load_chat(model / "model")
    context = longest_sequence(policy)
    encoded = encode_prompts(prompts, "train", chat, context, config.max_new_tokens, "sampling.max_new_tokens")
    put_aside(out, encoded)
    chosen = encoded.rows[: config.prompts]
    samples = sample(config, policy, chat, [ids for _, ids in chosen for _ in range(config.responses_per_prompt)], seed)
    sets = []
    for number, (prompt, _) in enumerate(chosen):
        start = number * config.responses_per_prompt
        distinct = distinct_texts(chat, samples[start : start + config.responses_per_prompt])
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
        "prompts_too_long": float(encoded.too_long),
        "prompts_rejected": encoded.counts["rejected"],
        "prompts_without_choice": float(len(chosen) - len(sets)),
    }
    journal.log(counts, step=0)
    return counts


def sample(
    config: SamplingOptions,
    model: PreTrainedModel,
    chat: ChatFormat,
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
        eos_token_ids=chat.end_ids,
        pad_token_id=chat.pad_token_id,
        generator=torch.Generator(device=model.device).manual_seed(seed),
    )


def distinct_texts(chat: ChatFormat, samples: Iterable[Sample]) -> dict[str, bool]:
    """The different texts in their order, without empty ones, and whether each ended (in any of its samples)."""
    ended: dict[str, bool] = {}
    for one in samples:
        text = chat.decode(one.tokens)
        ended[text] = ended.get(text, False) or one.ended
    return {text: value for text, value in ended.items() if text}


def blind(prompt: Prompt, texts: Mapping[str, bool], seed: int) -> tuple[Response, ...]:
    """Responses, each text with whether it ended, under opaque ids and in a seeded random order."""
    responses = [Response(id=stable_id("r", prompt.id, text), text=text, ended=ended) for text, ended in texts.items()]
    random.Random(f"{seed}-{prompt.id}").shuffle(responses)
    return tuple(responses)
