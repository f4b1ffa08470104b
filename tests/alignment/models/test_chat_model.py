"""A real chat model, imported, stops where transformers' `generate` stops, and its rows are those of its template."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.models.chat import ChatFormat, load_chat
from alignment.models.generation import generate
from alignment.models.importing import import_checkpoint
from alignment.records import Message
from tests.real_model import smollm2

pytestmark = pytest.mark.long
TOKENS = 32
QUESTIONS = [
    *(f"Answer with one word: what is the capital of {country}?" for country in ("France", "Peru", "Japan", "Egypt")),
    *(f"Say only the number: what is {n} plus {n}?" for n in (1, 2, 3, 5)),
    *(f"Answer yes or no: is {thing} an animal?" for thing in ("a cat", "a stone", "a horse", "water")),
    *(f"Repeat this word and nothing else: {word}" for word in ("house", "river", "mañana", "水")),
    *("Hi!", "Thank you.", "Name a colour.", "Why is the sky blue?"),
]


@pytest.fixture(scope="module")
def checkpoint(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return smollm2(pytestconfig.cache.mkdir("smollm2"))


@pytest.fixture(scope="module", params=["as it is", "with a second EOS"])
def directory(request, checkpoint: Path, tmp_path_factory) -> Path:
    """The checkpoint; with a second EOS it also ends at a token that it often writes, a full stop."""
    if request.param == "as it is":
        return checkpoint
    place = tmp_path_factory.mktemp("second") / "model"
    copytree(checkpoint, place)
    config = json.loads((place / "generation_config.json").read_text())
    stop = AutoTokenizer.from_pretrained(place).convert_tokens_to_ids(".")
    (place / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [config["eos_token_id"], stop]}))
    return place


def test_it_stops_where_transformers_stops_on_twenty_prompts(directory: Path) -> None:
    model, tokenizer, _ = import_checkpoint(directory)
    chat = ChatFormat.of(tokenizer, model.generation_config)
    prompts = [chat.prompt((Message(role="user", content=question),)) for question in QUESTIONS]
    ours = generate(
        model,
        prompts,
        max_new_tokens=TOKENS,
        eos_token_ids=chat.end_ids,
        pad_token_id=chat.pad_token_id,
        temperature=0,
    )
    reference, words = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ends = reference.generation_config.eos_token_id
    for question, sample in zip(QUESTIONS, ours, strict=True):
        turns = [{"role": "user", "content": question}]
        ids = words.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        theirs = reference.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0, len(ids) :].tolist()
        assert sample.tokens == theirs, question
        assert sample.ended == (theirs[-1] in (ends if isinstance(ends, list) else [ends]))
    assert 10 < sum(sample.ended for sample in ours) <= 20


def test_its_rows_are_those_of_its_template(checkpoint: Path) -> None:
    chat = load_chat(checkpoint)
    for question in QUESTIONS:
        turn = chat.turn((Message(role="user", content=question),), "Good question.")
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Good question."}]
        assert turn.prompt + turn.response + turn.rest == chat.tokenizer.apply_chat_template(turns, return_dict=False)
        assert turn.response[-1] == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
