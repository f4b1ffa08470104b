"""Conversations of any kind under any template: each is encoded or put aside, and none is lost or stops the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.config.stages import RowSource
from alignment.data.readers import read_as, to_demonstration
from alignment.errors import DataError
from alignment.models.chat import ChatFormat
from alignment.models.encoding import (
    encode_comparison,
    encode_comparisons,
    encode_demonstrations,
    encode_file,
    put_aside,
)
from alignment.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Rejected,
    read_records,
    write_records,
)
from tests.alignment.models.templates import FAMILIES, family_tokenizer
from tests.conftest import SHARED_DATA

ROWS = 2000  # of each kind
BATCH = 50
MARKS = sorted({token for family in FAMILIES.values() for token in family.special} | {"<think>", "</think>", "<eos>"})
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=4),  # with lone surrogates
    st.sampled_from([*MARKS, "", " ", "\ud83d", "\x00", "\ue000", "{{ bos_token }}", "\u200d"]),
    st.lists(st.sampled_from([*MARKS, "Who?", " "]), max_size=4).map("".join),
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXTS}), max_size=4
)
PROMPTS = st.fixed_dictionaries({"id": st.text(max_size=3), "messages": TURNS})
RESPONSES = st.fixed_dictionaries({"id": TEXTS, "text": TEXTS, "ended": st.sampled_from([True, False, None])})
KINDS: dict[type, st.SearchStrategy[Any]] = {
    Prompt: PROMPTS,
    Document: st.fixed_dictionaries({"text": TEXTS}) | st.fixed_dictionaries({"messages": TURNS}),
    Demonstration: st.fixed_dictionaries({"id": TEXTS, "messages": TURNS, "completion": TEXTS}),
    Comparison: st.fixed_dictionaries({"id": TEXTS, "prompt": PROMPTS, "chosen": RESPONSES, "rejected": RESPONSES}),
}


def encoder(chat: ChatFormat, kind: type) -> Any:
    """How the stages encode a record of a kind."""
    return {
        Prompt: lambda row: chat.prompt(row.messages),
        Document: chat.document,
        Demonstration: lambda row: chat.turn(row.messages, row.completion),
        Comparison: lambda row: encode_comparison(chat, row, 200),
    }[kind]


@pytest.fixture(scope="module", params=["gemma", "mistral", "qwen 3", "r1"])
def chat(request, tmp_path_factory) -> ChatFormat:
    return ChatFormat.of(family_tokenizer(tmp_path_factory.mktemp("family"), FAMILIES[request.param]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_encoded_or_put_aside(kind: type, chat: ChatFormat, tmp_path: Path) -> None:
    @settings(
        max_examples=ROWS // BATCH // 4,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(rows=st.lists(KINDS[kind] | ODD, min_size=BATCH, max_size=BATCH))
    def check(rows: list[Any]) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        encoded = encode_file(path, kind, encoder(chat, kind))
        assert len(encoded.rows) + len(encoded.rejected) == len(rows)
        put_aside(tmp_path, encoded)
        again, unreadable = read_records(tmp_path / "rejected.jsonl", Rejected)
        assert [row.line for row in again] == [row.line for row in encoded.rejected] and not unreadable
        assert all(row.reason and row.file == f"{tmp_path.name}/rows.jsonl" for row in again)

    check()


def test_one_row_that_a_template_refuses_costs_no_other(tmp_path: Path) -> None:
    chat = ChatFormat.of(family_tokenizer(tmp_path / "gemma", FAMILIES["gemma"]))
    plain = [
        {"id": f"d{n}", "messages": [{"role": "user", "content": f"What is {n}?"}], "completion": "It."}
        for n in range(40)
    ]
    plain[5]["messages"] = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Hello?"}]
    plain[9]["messages"] = [{"role": "user", "content": "Are you there?"}, {"role": "user", "content": "Hello?"}]
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
    encoded = encode_file(path, Demonstration, lambda row: chat.turn(row.messages, row.completion))
    assert len(encoded.rows) == 38 and [row.line for row in encoded.rejected] == [6, 10]
    assert "System role not supported" in encoded.rejected[0].reason
    assert "must alternate" in encoded.rejected[1].reason


def test_comparisons_of_which_none_fits_are_an_error_in_words(tmp_path: Path) -> None:
    chat = ChatFormat.of(family_tokenizer(tmp_path / "gemma", FAMILIES["gemma"]))
    prompt = Prompt(id="p", messages=(Message(role="user", content="Who?"),))
    row = Comparison(id="c", prompt=prompt, chosen={"id": "a", "text": "Ada."}, rejected={"id": "b", "text": "Bo."})
    write_records(tmp_path / "train.jsonl", [row])
    with pytest.raises(DataError, match=r"fits into 8 tokens; raise `align.x`. First: line 1: \d+ tokens, more than 8"):
        encode_comparisons(tmp_path / "train.jsonl", chat, 8, "align.x")
    assert len(encode_comparisons(tmp_path / "train.jsonl", chat, 64, "align.x").rows) == 1


def test_a_comparison_keeps_an_answer_that_was_cut_off_open(tmp_path: Path) -> None:
    chat = ChatFormat.of(family_tokenizer(tmp_path, FAMILIES["gemma"]))
    end = chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    row = Comparison(
        id="c",
        prompt=Prompt(id="p", messages=(Message(role="user", content="Who?"),)),
        chosen={"id": "a", "text": "Ada plays", "ended": False},
        rejected={"id": "b", "text": "Bo.", "ended": True},
    )
    pair = encode_comparison(chat, row, 64)
    assert end not in pair.chosen and pair.rejected[-1] == end


@pytest.mark.parametrize(
    ("name", "reason"), [("demos_system", "System role not supported"), ("demos_double_user", "must alternate")]
)
def test_the_demonstrations_of_the_cases_lose_the_refused_row_alone(name: str, reason: str, tmp_path: Path) -> None:
    path = SHARED_DATA.parent / "cases" / "templates" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    rows, _ = read_as(RowSource(path=str(path)), to_demonstration, None)
    write_records(tmp_path / "demonstrations.jsonl", rows)
    chat = ChatFormat.of(family_tokenizer(tmp_path / "gemma", FAMILIES["gemma"]))
    encoded = encode_demonstrations(tmp_path, chat, 64, "sft.max_length_tokens")
    assert len(encoded.rows) == 39 and len(rows) == 40
    (refused,) = encoded.rejected
    assert refused.line == 6 and reason in refused.reason
