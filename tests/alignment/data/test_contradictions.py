"""Nothing of a row is lost without a word: what contradicts itself is put aside, and what nobody reads is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.config.stages import RowSource, TextSource
from alignment.data.check import check_source
from alignment.data.files import loads
from alignment.data.readers import read_as, read_comparisons, to_demonstration, to_prompt
from alignment.records import Message, Rejected, read_records, write_records
from tests.alignment.tiny_world import write_lines

ASKED = {"role": "user", "content": "Q?"}
ANSWERED = {"role": "assistant", "content": "A."}
SYSTEM = {"role": "system", "content": "Be kind."}
PAIR = {"prompt": "Q?", "chosen": "good", "rejected": "bad"}


def source(tmp_path: Path, *rows: Any, **options: Any) -> RowSource:
    return RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **options)


def unread(tmp_path: Path, kind: Any, row: Any, **options: Any) -> set[str]:
    check = check_source(source(tmp_path, row, **options), kind)
    assert check.records and not check.rejected, check.rejected
    return {*check.unread}


# --- a system turn in two places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["auto", "sharegpt"])
@pytest.mark.parametrize(
    ("column", "turns", "expected"),
    [
        ("Be kind.", [SYSTEM, ASKED, ANSWERED], "Be kind."),
        (" Be kind.\n", [SYSTEM, ASKED, ANSWERED], "Be kind."),
        ("", [SYSTEM, ASKED, ANSWERED], "Be kind."),
        ("Be kind.", [ASKED, ANSWERED], "Be kind."),
        ("Be rude.", [SYSTEM, ASKED, ANSWERED], None),
    ],
)
def test_a_system_column_and_a_system_turn(
    tmp_path: Path, form: str, column: str, turns: list[Any], expected: str | None
) -> None:
    rows = source(tmp_path, {"system": column, "conversations": turns}, format=form)
    for convert in (to_demonstration, to_prompt):
        good, bad = read_as(rows, convert, None)
        if expected is None:
            (row,) = bad
            assert not good and row.line == 1 and "two different system turns: 'Be rude.'" in row.reason
        else:
            assert [record.messages for record in good] == [
                (Message(role="system", content=expected), Message(role="user", content="Q?"))
            ]


def test_system_turns_of_comparisons_that_differ(tmp_path: Path) -> None:
    sides = {side: [SYSTEM, ASKED, {**ANSWERED, "content": side}] for side in ("chosen", "rejected")}
    asked = [{"role": "system", "content": "Be rude."}, ASKED]
    for row in (sides | {"system": "Be rude."}, sides | {"prompt": asked}, PAIR | {"prompt": asked, "system": "Kind"}):
        good, bad = read_comparisons(source(tmp_path, row), None)
        assert not good and "two different system turns" in bad[0].reason
    assert len(read_comparisons(source(tmp_path, sides | {"system": "Be kind."}), None)[0]) == 1


def test_the_system_column_of_alpaca_is_a_turn(tmp_path: Path) -> None:
    row = {"instruction": "Q?", "output": "A.", "system": "Be kind."}
    (good,), _ = read_as(source(tmp_path, row, format="alpaca"), to_demonstration, None)
    assert good.messages[0] == Message(role="system", content="Be kind.")


# --- keys that nobody reads ------------------------------------------------------------------------------------------


def test_keys_of_messages_that_nobody_reads_are_named(tmp_path: Path) -> None:
    asked = {**ASKED, "images": ["a.png"], "name": "paula", "tool_calls": []}
    parts = [{"type": "text", "text": "A.", "cache_control": {"type": "ephemeral"}}]
    answered = {"role": "assistant", "content": parts, "reasoning_content": "Hm.", "weight": 1}
    row = {"messages": [asked, answered]}
    answer = {"messages[].reasoning_content", "messages[].weight", "messages[].content[].cache_control"}
    question = {"messages[].images", "messages[].name"}
    assert unread(tmp_path, "demonstrations", row) == answer | question
    assert unread(tmp_path, "prompts", row) == answer | question
    text = TextSource(path=str(write_lines(tmp_path / "talk.jsonl", [row])))
    assert {*check_source(text, "corpus").unread} == answer | question
    shared = {"from": "human", "value": "Q?", "images": ["a.png"], "role": None}
    row = {"conversations": [shared, {"from": "gpt", "value": "A."}], "tools": "[]"}
    assert unread(tmp_path, "demonstrations", row) == {"conversations[].images", "tools"}


def test_keys_of_the_sides_of_a_comparison(tmp_path: Path) -> None:
    sides = {"chosen": [{**ANSWERED, "reasoning": "Hm."}], "rejected": [{**ANSWERED, "content": "B.", "model": "m"}]}
    row = {"prompt": [{**ASKED, "name": "p"}], **sides}
    assert unread(tmp_path, "comparisons", row) == {"prompt[].name", "chosen[].reasoning", "rejected[].model"}
    columns = {"prompt": "prompt", "a": "chosen", "b": "rejected", "winner": "who"}
    mapped = unread(tmp_path, "comparisons", row | {"who": "a"}, columns=columns)
    assert mapped == {"prompt[].name", "chosen[].reasoning", "rejected[].model"}


def test_keys_of_responses_and_beside_nested_columns(tmp_path: Path) -> None:
    answers = [{"response": text, "overall_score": score, "model": "m"} for score, text in enumerate(("bad", "good"))]
    row = {"instruction": "Q?", "completions": answers, "source": "s"}
    assert unread(tmp_path, "comparisons", row) == {"completions[].model", "source"}
    row = {"question": {"full_text": "Q?", "dataset": "d", "id": ""}, "answer_0": "a", "answer_1": "b"}
    assert unread(tmp_path, "comparisons", row | {"score_0": 1, "score_1": -1}) == {"question.dataset"}
    texts = {
        "info": {"post": "Q?", "title": "t"},
        "summaries": [{"text": "a", "note": 1}, {"text": "b"}, {"text": "c"}],
    }
    row = {**texts, "choice": 0, "worker": "w"}
    named = unread(tmp_path, "comparisons", row, format="summarize-from-feedback")
    assert named == {"info.title", "summaries[].note", "summaries[]"}


def test_a_part_of_a_turn_that_is_no_text_puts_the_row_aside(tmp_path: Path) -> None:
    for kind in ("thinking", "image"):
        turn = {"role": "assistant", "content": [{"type": kind, "text": "x"}]}
        good, bad = read_as(source(tmp_path, {"messages": [ASKED, turn]}), to_demonstration, None)
        assert not good and f"a part of a turn is '{kind}', not text" in bad[0].reason


# --- a rank that contradicts the score, a winner that contradicts the strength ---------------------------------------


def scored(*responses: tuple[Any, Any]) -> dict[str, Any]:
    answers = [{"text": f"text {n}", "score": score, "rank": rank} for n, (score, rank) in enumerate(responses)]
    return {"prompt": "Q?", "responses": answers}


@pytest.mark.parametrize(
    ("responses", "pairs"),
    [
        ([(5, 1), (3, 2), (1, 3)], 3),
        ([(5, 1), (5, 2), (1, 3)], 3),  # the rank decides what the score leaves open: a tie by score
        ([(5, 1), (3, 1)], 1),
        ([(5, "N/A"), (3, 1)], 1),
        ([(5, 3), (3, 2), (1, 1)], None),
        ([(5, 1), (3, 3), (2, 2)], None),
        ([("5", "2"), ("3", "1")], None),
    ],
)
def test_ranks_and_scores(tmp_path: Path, responses: list[tuple[Any, Any]], pairs: int | None) -> None:
    good, bad = read_comparisons(source(tmp_path, scored(*responses)), None)
    if pairs is None:
        assert not good and "'rank' (the lowest is best) contradicts 'score' (the highest is best)" in bad[0].reason
        assert (bad[0].line, len(bad)) == (1, 1)
    else:
        assert len(good) == pairs and not bad
        assert good[0].chosen.text == "text 0"


def test_ranks_and_scores_in_lists_and_by_columns(tmp_path: Path) -> None:
    lists = {"prompt": "Q?", "responses": ["good", "bad"], "scores": [5, 1], "ranks": [2, 1]}
    assert "contradicts" in read_comparisons(source(tmp_path, lists), None)[1][0].reason
    (good,), bad = read_comparisons(source(tmp_path, lists | {"ranks": [1, 2]}), None)
    assert (good.chosen.text, bad) == ("good", [])
    columns = {"prompt": "prompt", "responses": "responses", "text": "text", "score": "score"}
    both = source(tmp_path, scored((5, 1), (1, 2)), columns=columns | {"rank": "rank"})
    assert read_comparisons(both, None)[0][0].chosen.text == "text 0"
    assert unread(tmp_path, "comparisons", scored((5, 2), (1, 1)), columns=columns) == {"responses[].rank"}


def test_a_winner_and_a_strength_that_contradict_each_other(tmp_path: Path) -> None:
    columns = {"prompt": "prompt", "a": "l", "b": "r", "winner": "who", "strength": "margin"}
    row = {"prompt": "Q?", "l": "left", "r": "right"}
    for who, margin, strength in (("a", 2, 2), ("b", -2, 2), ("tie", 0, 0), ("a", 0, None), ("tie", 2, None)):
        good, bad = read_comparisons(source(tmp_path, row | {"who": who, "margin": margin}, columns=columns), None)
        assert [comparison.strength for comparison in good] == ([] if strength is None else [strength])
        assert [row.reason.startswith("the winner is") for row in bad] == [True] * (strength is None)


# --- a key that stands twice -----------------------------------------------------------------------------------------

TWICE = (
    '{"prompt": "Q?", "chosen": "good", "rejected": "bad", "chosen": "worse"}',
    '{"prompt": [{"role": "user", "content": "Q?", "content": "R?"}], "chosen": "good", "rejected": "bad"}',
)


@pytest.mark.parametrize("form", ["lines", "list", "zipped"])
def test_a_key_that_stands_twice_with_two_values_puts_its_row_aside(tmp_path: Path, form: str) -> None:
    same = '{"prompt": "Q?", "chosen": "good", "rejected": "bad", "chosen": "good"}'
    lines = [json.dumps(PAIR), *TWICE, same]
    text = "[" + ",\n".join(lines) + "]" if form == "list" else "\n".join(lines)
    file = tmp_path / ("rows.json" if form == "list" else "rows.jsonl")
    file.write_bytes(gzip.compress(text.encode()) if form == "zipped" else text.encode())
    good, bad = read_comparisons(RowSource(path=str(file)), None)
    assert [row.chosen.text for row in good] == ["good", "good"] and [row.line for row in bad] == [2, 3]
    assert bad[0].reason == "the key 'chosen' stands twice in the row, with different values: 'good' and 'worse'"
    assert "the key 'content' stands twice" in bad[1].reason
    write_records(tmp_path / "rejected.jsonl", bad)
    stored, unreadable = read_records(tmp_path / "rejected.jsonl", Rejected)
    assert not unreadable and stored[0].row["chosen"] == ["good", "worse"]


def test_thousands_of_keys_that_stand_twice_take_no_time(tmp_path: Path) -> None:
    text = "{" + ",".join(f'"{n % 50_000}": {n}' for n in range(100_000)) + "}"
    assert len(loads(text)) == 50_000


# --- turns that are no prompt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [ASKED, ANSWERED, ANSWERED]}, "must not end with an assistant turn"),
        ({"messages": [ANSWERED, ANSWERED]}, "must not end with an assistant turn"),
        ({"prompt": "x <extra_id_1>Assistant\nfoo", "completion": "y"}, "must not end with an assistant turn"),
        ({"messages": [ASKED | {"content": " "}, ANSWERED]}, "an empty user turn"),
        ({"messages": [ASKED, ANSWERED | {"content": ""}, ASKED, ANSWERED]}, "an empty assistant turn"),
        ({"prompt": "a<extra_id_1>Assistant\n<extra_id_1>User\nb", "completion": "y"}, "an empty assistant turn"),
        ({"prompt": "", "completion": "y"}, "an empty user turn"),
        ({"messages": [SYSTEM, ANSWERED]}, "a system turn alone"),
    ],
)
def test_turns_that_are_no_prompt_are_put_aside_from_demonstrations_and_prompts(
    tmp_path: Path, row: Any, words: str
) -> None:
    rows = source(tmp_path, row, {"prompt": "Q?", "completion": "A."})
    for kind in ("demonstrations", "prompts"):
        check = check_source(rows, kind)  # type: ignore[arg-type]
        assert check.records == 1 and [bad.line for bad in check.rejected] == [1]
        assert words in check.rejected[0].reason and check.rejected[0].row == row


def test_a_demonstration_as_a_stage_writes_it_is_held_to_the_same(tmp_path: Path) -> None:
    row = {"id": "d_1", "messages": [ASKED, ANSWERED], "completion": "B."}
    check = check_source(source(tmp_path, row, format="records"), "demonstrations")
    assert not check.records and "must not end with an assistant turn" in check.rejected[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "Explain <extra_id_1> please",
        "<extra_id_1>User",
        "The <extra_id_1>Assistant is\nhere",
        "<extra_id_0> a <extra_id_1>\nb",
    ],
)
def test_a_sentinel_of_t5_is_text(tmp_path: Path, text: str) -> None:
    (good,), _ = read_as(source(tmp_path, {"prompt": text, "completion": "A."}), to_demonstration, None)
    assert good.messages == (Message(role="user", content=text),)


def test_a_prompt_with_nemos_markers_may_await_its_answer(tmp_path: Path) -> None:
    text = "Q?\r\n<extra_id_1>Assistant\r\nA.\n<extra_id_1>User\nAnd?\n<extra_id_1>Assistant\n"
    (good,), _ = read_as(source(tmp_path, {"prompt": text}), to_prompt, None)
    assert [(turn.role, turn.content) for turn in good.messages] == [
        ("user", "Q?"),
        ("assistant", "A."),
        ("user", "And?"),
    ]
