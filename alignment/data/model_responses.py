"""Responses of models to prompts from a file, as response sets for people to judge: `rlhf sample`.

    out/samples/MODEL.jsonl   a line for each prompt that a model has answered; a killed command goes on after them
    out/responses.jsonl       response sets, blind, for `labeling.responses`
    out/origins.jsonl         which model gave which response
    out/rejected.jsonl        rows and prompts that were put aside, with file, line and reason

Every prompt has random numbers of its own, so its responses depend neither on the other prompts nor on a restart.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from alignment.config.base import Config, Count, Natural, NonNegative
from alignment.config.stages import ComputeConfig, RowSource
from alignment.data.conversations import Row
from alignment.data.readers import read_as, to_prompt
from alignment.data.responses import blind
from alignment.distributed.devices import computing, frozen_dtype
from alignment.errors import ConfigError, DataError, UnfitRowError
from alignment.journal import cut_half_line
from alignment.models.architecture import longest_sequence
from alignment.models.chat import ChatFormat, load_chat
from alignment.models.encoding import check_length
from alignment.models.generation import generate
from alignment.models.scalar import load_causal_model
from alignment.progress import progress
from alignment.records import (
    Prompt,
    Record,
    Rejected,
    ResponseSet,
    Split,
    as_line,
    read_records,
    write_records,
)

SAMPLES = "samples"
MOST_RESPONSES = 9  # of a screen
RECORD = {"id", "messages", "split"}  # of a prompt that a stage wrote


class SampleOptions(Config):
    """How responses are sampled; with `temperature` 0 they are the most likely ones, one of each model."""

    responses: Count = Field(4, description="responses of each model to a prompt")
    temperature: NonNegative = Field(1.0, description="sampling temperature")
    max_new_tokens: Count = Field(128, description="maximum response length in tokens")
    batch_size: Count = Field(64, description="responses generated at a time")
    seed: Natural = Field(0, description="random seed")

    @model_validator(mode="after")
    def _greedy_gives_one(self) -> "SampleOptions":
        if self.temperature == 0 and self.responses > 1:
            raise ValueError("temperature 0 always gives the same response: ask for 1 response, or sample")
        return self


class SourcePrompt(Record):
    """A prompt with the place where it was read."""

    prompt: Prompt
    file: str
    line: int


class Answer(Record):
    """A response as text, and whether it ended by itself."""

    text: str
    ended: bool


class Answered(Record):
    """What a model answered to a prompt, or why it cannot read it."""

    prompt_id: str
    answers: tuple[Answer, ...] = ()
    problem: str = ""


class Origin(Record):
    """The models that gave a response."""

    response: str
    models: tuple[str, ...]


def sample_sets(
    models: Mapping[str, Path],
    prompts: Sequence[SourcePrompt],
    rejected: Sequence[Rejected],
    options: SampleOptions,
    compute: ComputeConfig,
    out: Path,
) -> dict[str, int]:
    """Sample from each model what is missing, and write the sets; returns counts. Raises DataError if there is no set.

    `models` maps names to checkpoints. What an earlier call left in `out` must be of the same models and options.
    """
    if len(models) * options.responses < 2:
        raise ConfigError(
            "one response to a prompt leaves nothing to choose between: ask for more responses, or name a second model"
        )
    answers = {}
    for name, directory in models.items():
        path = out / SAMPLES / f"{name.replace('/', '-')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with computing(compute):
            answers[name] = _answers(name, directory, [row.prompt for row in prompts], options, path)
    return _write_sets(prompts, rejected, answers, options.seed, out)


def _answers(
    name: str, directory: Path, prompts: Sequence[Prompt], options: SampleOptions, path: Path
) -> dict[str, Answered]:
    """The answers of a model by prompt: those in the file, and the missing ones, which are appended to it."""
    cut_half_line(path)
    done = {row.prompt_id: row for row in (read_records(path, Answered)[0] if path.exists() else [])}
    missing = [prompt for prompt in prompts if prompt.id not in done]
    if not missing:
        return done
    model, chat = load_causal_model(directory, frozen_dtype()), load_chat(directory)
    at_a_time = max(1, options.batch_size // options.responses)
    with path.open("a", encoding="utf-8") as file, progress(f"sampling {name}", len(prompts), "prompts") as shown:
        shown.skip(len(prompts) - len(missing))
        for start in range(0, len(missing), at_a_time):
            rows = _sampled(model, chat, missing[start : start + at_a_time], options)
            file.write("".join(f"{as_line(row)}\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
            done |= {row.prompt_id: row for row in rows}
            shown.add(len(rows))
    return done


def _sampled(
    model: PreTrainedModel, chat: ChatFormat, prompts: Sequence[Prompt], options: SampleOptions
) -> list[Answered]:
    """The answers to some prompts; one that the model cannot read is answered with the problem."""
    encoded = {prompt.id: _encoded(model, chat, prompt, options.max_new_tokens) for prompt in prompts}
    tokens = [row for row in encoded.values() if not isinstance(row, str) for _ in range(options.responses)]
    readable = [prompt.id for prompt in prompts if not isinstance(encoded[prompt.id], str)]
    samples = generate(
        model,
        tokens,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        batch_size=options.batch_size,
        eos_token_ids=chat.end_ids,
        pad_token_id=chat.pad_token_id,
        uniforms=_uniforms(readable, options),
    )
    texts = [Answer(text=chat.decode(sample.tokens), ended=sample.ended) for sample in samples]
    count = options.responses
    answers = {name: texts[number * count : (number + 1) * count] for number, name in enumerate(readable)}
    return [
        Answered(prompt_id=name, problem=row)
        if isinstance(row, str)
        else Answered(prompt_id=name, answers=answers[name])
        for name, row in encoded.items()
    ]


def _encoded(model: PreTrainedModel, chat: ChatFormat, prompt: Prompt, max_new_tokens: int) -> list[int] | str:
    """The tokens of a prompt, or why the model cannot read it."""
    try:
        tokens = chat.prompt(prompt.messages)
        check_length(len(tokens), longest_sequence(model) - max_new_tokens)
    except UnfitRowError as error:
        return str(error)
    return tokens


def _uniforms(names: Sequence[str], options: SampleOptions) -> Tensor:
    """Random numbers by the prompt's id and the seed. Shape: (prompts · responses, max_new_tokens)."""
    rows = [
        torch.rand(
            options.max_new_tokens, generator=_generator(f"{options.seed}\x1f{name}\x1f{number}"), dtype=torch.float64
        )
        for name in names
        for number in range(options.responses)
    ]
    return torch.stack(rows) if rows else torch.empty(0, options.max_new_tokens, dtype=torch.float64)


def _generator(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def _write_sets(
    prompts: Sequence[SourcePrompt],
    rejected: Iterable[Rejected],
    answers: Mapping[str, Mapping[str, Answered]],
    seed: int,
    out: Path,
) -> dict[str, int]:
    """Write the sets of distinct responses, their origins, and what was put aside."""
    sets: list[ResponseSet] = []
    origins: list[Origin] = []
    aside = list(rejected)
    for row in prompts:
        rows = {name: answered[row.prompt.id] for name, answered in answers.items()}
        models: dict[str, dict[str, bool]] = {}  # by text: whether it ended, by the model's name
        for name, answered in rows.items():
            for answer in answered.answers:
                models.setdefault(answer.text, {})[name] = models.get(answer.text, {}).get(name, False) or answer.ended
        texts = {text: any(ended.values()) for text, ended in models.items() if text.strip()}
        problem = _problem(rows, texts)
        if problem:
            aside.append(Rejected(file=row.file, line=row.line, reason=problem, row=row.prompt.model_dump(mode="json")))
            continue
        responses = blind(row.prompt, dict(list(texts.items())[:MOST_RESPONSES]), seed)
        sets.append(ResponseSet(prompt=row.prompt, responses=responses))
        origins += [Origin(response=response.id, models=tuple(models[response.text])) for response in responses]
    write_records(out / "rejected.jsonl", aside)
    if not sets:
        first = f"; first: {aside[0].file} line {aside[0].line}: {aside[0].reason}" if aside else ""
        raise DataError(f"no prompt has two different responses: {out / 'rejected.jsonl'} says why{first}")
    write_records(out / "origins.jsonl", origins)
    write_records(out / "responses.jsonl", sets)
    return {"prompts": len(sets), "responses": sum(len(item.responses) for item in sets), "put aside": len(aside)}


def _problem(rows: Mapping[str, Answered], texts: Mapping[str, bool]) -> str:
    """Why there is no set for a prompt; "" for at least two responses."""
    unread = next((f"{name}: {row.problem}" for name, row in rows.items() if row.problem), "")
    if unread or len(texts) >= 2:
        return unread
    return f"{len(texts)} different responses, and a set needs 2: ask for more, or raise the temperature"


def read_prompts(source: RowSource, split: Split | None) -> tuple[list[SourcePrompt], list[Rejected], int]:
    """The prompts of a file without duplicates, the rows that are none, and how many belong to another split.

    Besides the formats of recipes these may be prompts and response sets that a stage wrote, with their ids and splits.
    """
    rows, bad = read_as(source, _to_source_prompt, None)
    chosen = {row.prompt.id: row for row in reversed(rows) if split is None or row.prompt.split == split}
    kept = [row for row in rows if chosen.get(row.prompt.id) is row]
    return kept, bad, sum(split is not None and row.prompt.split != split for row in rows)


def _to_source_prompt(row: Row, source: RowSource, number: int) -> SourcePrompt:
    prompt = row.get("prompt")
    if source.format == "auto" and source.columns is None and RECORD <= row.keys() <= Prompt.model_fields.keys():
        read = Prompt.model_validate(row)
    elif source.format in ("auto", "records") and isinstance(prompt, dict) and prompt.keys() >= RECORD:
        read = Prompt.model_validate(prompt)
    else:
        read = to_prompt(row, source, number)
    return SourcePrompt(prompt=read, file=source.path, line=number)
