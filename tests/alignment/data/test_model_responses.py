"""Responses of models to prompts from a file: resumable by prompt, and what cannot be answered is put aside."""

import json
from pathlib import Path

import pytest

from alignment.config.stages import ComputeConfig, RowSource
from alignment.data import model_responses
from alignment.data.model_responses import Origin, SampleOptions, read_prompts, sample_sets
from alignment.errors import ConfigError, DataError
from alignment.records import Message, Prompt, Rejected, Response, ResponseSet, read_records, write_records
from flows.annotation.select import read_material
from labeling.config import LabelingConfig
from tests.flows.tiny import write_model

CPU = ComputeConfig(device="cpu", precision="float32")
OPTIONS = SampleOptions(responses=3, max_new_tokens=8, batch_size=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of random weights with a context of 64 tokens."""
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture
def prompts(tmp_path: Path) -> RowSource:
    """Five prompts, one of them twice; a line that is none, and a prompt that is longer than the context."""
    texts = ["Who are you?", "Where is it?", "Why?", "How far?", "x" * 80, "When?", "Why?"]
    lines = [json.dumps({"prompt": text}) for text in texts]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*lines[:2], "{no json", *lines[2:]]) + "\n")
    return RowSource(path=str(path))


def sampled(model: Path, source: RowSource, out: Path, options: SampleOptions = OPTIONS) -> dict[str, int]:
    asked, rejected, _ = read_prompts(source, "train")
    return sample_sets({"policy-1": model}, asked, rejected, options, CPU, out)


def test_prompts_become_sets_that_labelling_takes(model: Path, prompts: RowSource, tmp_path: Path) -> None:
    counts = sampled(model, prompts, tmp_path / "out")
    sets, _ = read_records(tmp_path / "out" / "responses.jsonl", ResponseSet)
    assert counts == {"prompts": 5, "responses": sum(len(row.responses) for row in sets), "put aside": 2}
    assert [row.prompt.text for row in sets] == ["Who are you?", "Where is it?", "Why?", "How far?", "When?"]
    aside, _ = read_records(tmp_path / "out" / "rejected.jsonl", Rejected)
    assert [row.line for row in aside] == [3, 6] and "tokens, more than 56" in aside[1].reason
    origins, _ = read_records(tmp_path / "out" / "origins.jsonl", Origin)
    assert {row.response for row in origins} == {answer.id for row in sets for answer in row.responses}
    assert {row.models for row in origins} == {("policy-1",)}
    material = read_material(LabelingConfig(annotators="people", responses=(str(tmp_path / "out"),)), None)
    assert [row.prompt for row in material.sets] == [row.prompt for row in sets]


def test_a_killed_command_goes_on_at_the_next_prompt_with_the_same_responses(
    model: Path, prompts: RowSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled(model, prompts, tmp_path / "whole")
    sampled(model, prompts, tmp_path / "stopped")
    file = tmp_path / "stopped" / "samples" / "policy-1.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote the third prompt
    (tmp_path / "stopped" / "responses.jsonl").unlink()
    asked: list[int] = []
    generate = model_responses.generate
    monkeypatch.setattr(model_responses, "generate", lambda *a, **k: asked.append(len(a[1])) or generate(*a, **k))
    sampled(model, prompts, tmp_path / "stopped", OPTIONS.model_copy(update={"batch_size": 3}))
    assert asked == [3, 3, 0, 3]  # one prompt at a time, the long one without any
    for name in ("responses.jsonl", "origins.jsonl", "rejected.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    asked.clear()
    sampled(model, prompts, tmp_path / "stopped")
    assert not asked


def test_greedy_responses_need_a_second_model(model: Path, prompts: RowSource, tmp_path: Path) -> None:
    greedy = SampleOptions(responses=1, temperature=0, max_new_tokens=4)
    asked, rejected, _ = read_prompts(prompts, None)
    with pytest.raises(ConfigError, match="leaves nothing to choose between"):
        sample_sets({"a": model}, asked, rejected, greedy, CPU, tmp_path / "out")
    with pytest.raises(DataError, match=r"no prompt has two different responses.* 1 different responses"):
        sample_sets({"a": model, "b": model}, asked[:1], [], greedy, CPU, tmp_path / "out")  # the same model twice
    with pytest.raises(ValueError, match="temperature 0 always gives the same response"):
        SampleOptions(responses=2, temperature=0)


def test_prompts_of_stages_keep_their_ids_and_splits(tmp_path: Path) -> None:
    rows = [
        Prompt(id=f"p_{split}", messages=(Message(role="user", content=split),), split=split, meta={"fact": 7})
        for split in ("train", "heldout")
    ]
    write_records(tmp_path / "prompts.jsonl", rows)
    answers = (Response(id="a", text="a"), Response(id="b", text="b"))
    write_records(tmp_path / "sets.jsonl", [ResponseSet(prompt=row, responses=answers) for row in rows])
    for name in ("prompts.jsonl", "sets.jsonl"):
        asked, rejected, others = read_prompts(RowSource(path=str(tmp_path / name)), "train")
        assert ([row.prompt for row in asked], rejected, others) == (rows[:1], [], 1)
        assert [row.prompt for row in read_prompts(RowSource(path=str(tmp_path / name)), None)[0]] == rows
