"""Responses of one release under the reward model of another, against scores of tokens put together by hand."""

import json
from pathlib import Path

import pytest

from alignment.evaluation.rescoring import rescore
from alignment.journal import Journal
from alignment.models.scalar import load_rewards, reward_scores
from alignment.models.tokenizer import load_tokenizer
from alignment.records import Message
from tests.alignment.tiny_world import prompt_tokens, response_tokens, write_lines

FACT, OPEN = "What does Ada play?", "Tell me about Bo."


def row(model: str, prompt: str, response: str, ended: bool = True) -> dict[str, object]:
    return {"model": model, "prompt_id": prompt, "response": response, "ended": ended}


def test_the_policy_s_responses_to_held_out_prompts_are_scored(world: Path, tmp_path: Path) -> None:
    rows = [
        row("sft", FACT, "The harp."),
        row("policy", FACT, "The drum."),
        row("policy", OPEN, "Bo is", ended=False),
        row("policy", OPEN, "long " * 60),  # more than the reward model's context
        row("policy", "Who?", "a training prompt"),
        row("policy", "elsewhere", "a prompt of the other release alone"),
    ]
    write_lines(tmp_path / "samples.jsonl", rows)
    out = tmp_path / "out"
    out.mkdir()
    counts = rescore(out, Journal(out), evaluation=tmp_path, prompts=world, reward=world / "reward")
    assert counts == {"responses": 2.0, "unfit": 1.0}
    tokenizer = load_tokenizer(world / "reward" / "model")
    heads = [prompt_tokens(tokenizer, [Message(role="user", content=text)]) for text in (FACT, OPEN)]
    whole = response_tokens(tokenizer, "Bo is")
    answers = [response_tokens(tokenizer, "The drum."), whole[:-1]]  # the one that was cut off has no end
    sequences = [head + answer for head, answer in zip(heads, answers, strict=True)]
    expected = reward_scores(load_rewards(world / "reward"), sequences, list(map(len, heads))).tolist()
    scored = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [line["prompt_id"] for line in scored] == [FACT, OPEN]
    assert [line["reward"] for line in scored] == pytest.approx(expected, abs=1e-5)
