"""External data in common formats; invalid rows are reported with line and reason."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from alignment.config.stages import RowSource, TextSource
from alignment.data.readers import fill, locate, read_as, read_documents, to_comparison, to_demonstration, to_prompt
from alignment.errors import ConfigError, DataError
from alignment.records import Message
from tests.alignment.tiny_world import user, write_lines

ANSWER = [{"role": "assistant", "content": "The violin."}]
ASKED = [{"role": "user", "content": "What does Ada play?"}]
TALK = [{"role": "system", "content": "Be kind."}, *ASKED]


def read(tmp_path, rows, convert, **options):
    source = RowSource(path=str(write_lines(tmp_path / "rows.jsonl", rows)), **options)
    return read_as(source, convert, None)


def one(tmp_path, row, convert, **options):
    (good,), bad = read(tmp_path, [row], convert, **options)
    assert not bad
    return good


def reason(tmp_path, row, convert, **options) -> str:
    good, (bad,) = read(tmp_path, [row], convert, **options)
    assert not good and (bad.line, bad.row) == (1, row)
    return bad.reason


# --- shapes of TRL ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What does Ada play?", "completion": " The violin.\n"},
        {"prompt": ASKED, "completion": ANSWER},
        {"messages": ASKED + ANSWER},
    ],
)
def test_demonstrations_as_text_and_as_conversations(tmp_path, row) -> None:
    read_row = one(tmp_path, row, to_demonstration)
    assert read_row.messages == user("What does Ada play?") and read_row.completion == "The violin."


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What does Ada play?"},
        {"prompt": ASKED},
        {"messages": ASKED + ANSWER},
        {"prompt": "What does Ada play?", "chosen": "a", "rejected": "b"},
        {"chosen": ASKED + ANSWER, "rejected": [*ASKED, {"role": "assistant", "content": "?"}]},
    ],
)
def test_prompts_from_every_shape(tmp_path, row) -> None:
    read_row = one(tmp_path, row, to_prompt)
    assert read_row.messages == user("What does Ada play?")
    assert read_row.id == one(tmp_path, {"prompt": ASKED}, to_prompt).id  # the same question is the same prompt


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "chosen": "good", "rejected": "bad"},
        {
            "prompt": [{"role": "user", "content": "Q?"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
        {
            side: [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": word}]
            for side, word in (("chosen", "good"), ("rejected", "bad"))
        },
    ],
)
def test_comparisons_with_and_without_a_prompt_of_their_own(tmp_path, row) -> None:
    read_row = one(tmp_path, row, to_comparison)
    assert read_row.prompt.messages == user("Q?")
    assert (read_row.chosen.text, read_row.rejected.text, read_row.strength) == ("good", "bad", 1)
    assert read_row.annotation_id == "rows.jsonl:1" and read_row.annotator_id == ""


def test_system_turns_stay(tmp_path) -> None:
    assert [m.role for m in one(tmp_path, {"prompt": TALK}, to_prompt).messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("row", "convert", "words"),
    [
        ({"prompt": "Q?", "completion": " "}, to_demonstration, "the completion is empty"),
        ({"prompt": "Q?"}, to_demonstration, "no `messages` or `prompt` and `completion` among ['prompt']"),
        ({"messages": ASKED}, to_demonstration, "does not end with an assistant turn"),
        ({"messages": ANSWER}, to_demonstration, "does not end with an assistant turn after a user's"),
        ({"messages": "Q?"}, to_prompt, "no `prompt` or `messages` among ['messages']"),
        ({"messages": ANSWER}, to_prompt, "does not end with an assistant turn after a user's"),
        ({"prompt": []}, to_prompt, "expected text or a list of messages"),
        ({"prompt": 5}, to_prompt, "not int"),
        ({"prompt": [{"role": "robot", "content": "Q?"}]}, to_prompt, "role"),
        ({"prompt": "  "}, to_prompt, "an empty user turn"),
        ({"chosen": "a"}, to_comparison, "no `chosen` and `rejected`"),
        ({"prompt": "Q?", "chosen": "a", "rejected": " a "}, to_comparison, "are the same"),
        ({"prompt": "Q?", "chosen": "a", "rejected": ""}, to_comparison, "an empty response"),
        ({"chosen": ASKED + ANSWER, "rejected": TALK + ANSWER}, to_comparison, "do not share the same prompt"),
        ({"prompt": "Q?", "chosen": ASKED, "rejected": "b"}, to_comparison, "does not contain the prompt"),
        ({"prompt": "Q?", "chosen": ANSWER + ASKED, "rejected": ANSWER}, to_comparison, "one conversation, cut"),
        (["Q?"], to_prompt, "expected an object, not list"),
    ],
)
def test_rows_that_do_not_fit_are_rejected_with_the_reason(tmp_path, row, convert, words) -> None:
    assert words in reason(tmp_path, row, convert)


def test_records_are_read_as_they_are_and_checked(tmp_path) -> None:
    row = {"id": "p1", "messages": ASKED, "kind": "fact", "split": "heldout", "meta": {"n": 1}}
    assert one(tmp_path, row, to_prompt, format="records").kind == "fact"
    assert "kinds: Extra inputs" in reason(tmp_path, {**row, "kinds": 1}, to_prompt, format="records")


# --- Anthropic's transcripts -----------------------------------------------------------------------------------------

HH = "\n\nHuman: Who plays?\n\nAssistant: Ada.\n\nHuman: What?\n\nAssistant:"


@pytest.mark.parametrize("form", ["hh", "auto"])
def test_transcripts_are_split_before_the_last_answer(tmp_path, form) -> None:
    row = one(tmp_path, {"chosen": f"{HH} The violin.", "rejected": f"{HH} Go away."}, to_comparison, format=form)
    said = [("user", "Who plays?"), ("assistant", "Ada."), ("user", "What?")]
    assert row.prompt.messages == tuple(Message(role=role, content=words) for role, words in said)
    assert (row.chosen.text, row.rejected.text) == ("The violin.", "Go away.")


def test_a_transcript_may_speak_of_an_assistant(tmp_path) -> None:
    talk = "\n\nHuman: Is the Assistant: here?\n\nAssistant: Human: yes.\nAssistant: no."
    row = one(tmp_path, {"chosen": talk, "rejected": talk + " Never."}, to_comparison, format="hh")
    assert row.prompt.messages == user("Is the Assistant: here?")
    assert row.chosen.text == "Human: yes.\nAssistant: no."


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (f"{HH} a", HH.replace("Ada", "Bo") + " b", "do not share the same prompt"),
        (f"{HH} a", "\n\nHuman: Who plays?\n\nAssistant: b", "do not share the same prompt"),
        (f"{HH} a", f"{HH} ", "an empty response"),
        ("\n\nHuman:\n\nAssistant: a", "\n\nHuman: \n\nAssistant: b", "an empty user turn"),
        (f"{HH} a\n\nHuman: bye", f"{HH} b", "does not end with an Assistant turn"),
        ("Ada plays.", f"{HH} b", "not a transcript"),
        ("Ada said\n\nHuman: Q?\n\nAssistant: a", f"{HH} b", "not a transcript"),
        (7, f"{HH} b", "not int"),
    ],
)
def test_transcripts_that_do_not_fit_are_rejected(tmp_path, chosen, rejected, words) -> None:
    assert words in reason(tmp_path, {"chosen": chosen, "rejected": rejected}, to_comparison, format="hh")


# --- templates -------------------------------------------------------------------------------------------------------


def test_templates_reach_into_fields(tmp_path) -> None:
    row = {"ask": {"who": "Ada"}, "answers": ["the violin", "a drum"]}
    told = {"format": "template", "prompt": "What does {ask[who]} play?", "completion": "{answers[0]}, they say"}
    read_row = one(tmp_path, row, to_demonstration, **told)
    assert (read_row.messages, read_row.completion) == (user("What does Ada play?"), "the violin, they say")
    assert one(tmp_path, row, to_prompt, **told).messages == user("What does Ada play?")


@pytest.mark.parametrize("row", [{}, {"answers": []}, {"answers": "x"}, {"answers": None}])
def test_a_row_without_the_templates_field_is_rejected(tmp_path, row) -> None:
    words = reason(tmp_path, row, to_prompt, format="template", prompt="{answers[3]}")
    assert "template '{answers[3]}' does not fit the row" in words


@pytest.mark.parametrize(
    "template", ["{a.b}", "{a.__class__}", "{a[__class__]}", "{a!r:{b.c}}", "{a:{b.__init__}}", "{a:{b:{c.d}}}"]
)
def test_attributes_are_not_reachable_from_a_template(template) -> None:
    with pytest.raises(ConfigError, match="use keys and indices"):
        fill(template, {"a": object, "b": object, "c": object})


@pytest.mark.parametrize("template", ["{a:999999999999}", "{a:.999999999f}", "{a!r:>100000000}"])
def test_the_width_of_a_field_of_a_template_is_bounded(template) -> None:
    with pytest.raises(ConfigError, match="give a width or precision below 1000"):
        fill(template, {"a": 1})
    assert fill("{a:03}", {"a": 1}) == "001"


def test_a_negative_strength_of_chosen_and_rejected_is_put_aside(tmp_path) -> None:
    columns = {"prompt": "q", "chosen": "c", "rejected": "r", "strength": "s"}
    words = reason(tmp_path, {"q": "a", "c": "b", "r": "d", "s": -3}, to_comparison, columns=columns)
    assert "the strength is -3, but `chosen` is the better" in words


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": '"hi"', "response_a": '"no"'}, "not JSON lists"),
        ({"prompt": '{"hi": 1}'}, "not JSON lists"),
        ({"winner_model_b": 1}, "name both responses"),
        ({"winner_model_a": 0, "winner_tie": 0}, "no response and no tie"),
    ],
)
def test_turns_and_winners_of_arena_55k_are_what_they_should_be(tmp_path, changed, words) -> None:
    row = {"prompt": '["q"]', "response_a": '["x"]', "response_b": '["y"]', "winner_model_a": 1, "winner_model_b": 0}
    assert one(tmp_path, row, to_comparison).chosen.text == "x"
    assert words in reason(tmp_path, {**row, **changed}, to_comparison)


def test_a_row_without_a_prompt_says_so(tmp_path) -> None:
    words = reason(tmp_path, {"prompt": None, "chosen": "b", "rejected": "c"}, to_comparison)
    assert words.startswith("no prompt: no column holds it")


def test_a_template_with_a_stray_brace_is_an_error_in_words() -> None:
    for template in ("{a", "a}", "{a[0}"):
        with pytest.raises(ConfigError, match="cannot be read"):
            fill(template, {"a": "b"})
    assert fill("{{a}}", {"a": "b"}) == "{a}"


def test_values_with_braces_are_not_templates_themselves() -> None:
    assert fill("{a}", {"a": "{b} {0.real}"}) == "{b} {0.real}"


# --- files -----------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": "Who plays?", "completion": "Ada."}, {"prompt": "What, “then”?", "completion": "The violin,\nso."}]


def write_csv(path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "rows.jsonl": lambda path: write_lines(path, ROWS),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.csv": write_csv,
    "rows.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_gives_the_same_rows(tmp_path, name, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    WRITERS[name](tmp_path / name)
    good, bad = read_as(RowSource(path=str(tmp_path / name)), to_demonstration, None)
    assert not bad
    assert [(row.messages[0].content, row.completion) for row in good] == [tuple(row.values()) for row in ROWS]


def test_rows_below_a_key_and_a_limit(tmp_path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"data": ROWS}))
    source = RowSource(path=str(tmp_path / "rows.json"), rows="data", limit=1)
    assert len(read_as(source, to_prompt, None)[0]) == 1
    with pytest.raises(DataError, match="name the key"):
        read_as(RowSource(path=str(tmp_path / "rows.json")), to_prompt, None)


def test_the_limit_counts_good_rows(tmp_path) -> None:
    good, bad = read(tmp_path, [{"prompt": " "}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}], to_prompt, limit=2)
    assert [row.text for row in good] == ["a", "b"] and [row.line for row in bad] == [1]


def test_a_line_that_is_not_json_is_rejected_by_its_number(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n\n{broken\n{"prompt": "\xff"}\n')
    good, bad = read_as(RowSource(path=str(file)), to_prompt, None)
    assert len(good) == 1 and [row.line for row in bad] == [3, 4]
    assert all("not a line of UTF-8 JSON" in row.reason for row in bad)


def test_paragraphs_of_a_plain_file_are_documents(tmp_path) -> None:
    (tmp_path / "book.txt").write_text("One line\nand another.\n\n \n\nSecond.\n")
    documents, bad = read_documents(TextSource(path=str(tmp_path / "book.txt")))
    assert [d.text.strip() for d in documents] == ["One line\nand another.", "Second."] and not bad


def test_documents_come_from_a_text_column_or_from_turns(tmp_path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"body": "a text"}, {"messages": ASKED}, {"text": "other column"}])
    documents, bad = read_documents(TextSource(path=str(file), text_field="body"))
    assert [d.plain for d in documents] == ["a text", "What does Ada play?"]
    assert [(row.line, row.reason) for row in bad] == [
        (3, "no text under 'body' and no list of messages; columns: ['text']")
    ]


def test_what_is_not_there_is_an_error_in_words(tmp_path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        locate(str(tmp_path / "nothing.jsonl"), None)
    with pytest.raises(DataError, match=r"the format '\.xlsx' is not supported"):
        (tmp_path / "rows.xlsx").write_text("no spreadsheet")
        read_as(RowSource(path=str(tmp_path / "rows.xlsx")), to_prompt, None)
    with pytest.raises(ConfigError, match="no `town:` section"):
        locate("town://corpus.jsonl", None)
    assert locate("town://corpus.jsonl", tmp_path) == tmp_path / "corpus.jsonl"
    assert locate("owner/data-set", None) is None
