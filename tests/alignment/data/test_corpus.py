"""The corpus: cleaned, deduplicated, split, with every unreadable row reported."""

import json

import pytest

from alignment.config.stages import CorpusConfig, TextSource
from alignment.data.check import check_source
from alignment.data.corpus import prepare_corpus
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Document, Rejected, read_records
from tests.alignment.tiny_world import write_lines


def prepare(tmp_path, rows, seed=0, **options):
    source = TextSource(path=str(write_lines(tmp_path / "raw.jsonl", rows)))
    out = tmp_path / f"out-{seed}"
    counts = prepare_corpus(CorpusConfig(sources=(source,), **options), out, Journal(out), seed=seed)
    return counts, *(read_records(out / f"{name}.jsonl", Document)[0] for name in ("train", "heldout"))


def texts(*parts) -> list[str]:
    return sorted(document.plain for part in parts for document in part)


def distinct(count: int) -> list[dict[str, str]]:
    return [{"text": f"Text number {i} speaks of {i * i} and of {i + 7}."} for i in range(count)]


def test_exact_copies_and_short_texts_are_counted_and_left_out(tmp_path) -> None:
    rows = [*distinct(8), {"text": "Text number 0  speaks of 0 and of 7.\n"}, {"text": "tiny"}]
    counts, train, heldout = prepare(tmp_path, rows, heldout_share=0.25)
    assert (counts["read"], counts["exact_copies"], counts["too_short"], counts["near_copies"]) == (10, 1, 1, 0)
    assert (len(train), len(heldout)) == (6, 2)
    assert texts(train, heldout) == sorted(row["text"] for row in distinct(8))
    assert counts["characters"] == sum(len(row["text"]) for row in distinct(8))


def test_the_split_depends_on_the_seed_alone(tmp_path) -> None:
    _, train, heldout = prepare(tmp_path, distinct(40), heldout_share=0.2)
    again = prepare(tmp_path, distinct(40), heldout_share=0.2)
    other = prepare(tmp_path, distinct(40), seed=1, heldout_share=0.2)
    assert (train, heldout) == again[1:] and texts(heldout) != texts(other[2])
    assert len(heldout) == 8 and texts(train, heldout) == texts(*other[1:])


def test_conversations_keep_their_turns(tmp_path) -> None:
    asked = {"role": "user", "content": "Who plays the  violin?"}
    talk = [asked, {"role": "assistant", "content": "Ada does,\x00 I hear."}]
    empty = [asked, {"role": "assistant", "content": "\x00"}]
    counts, train, heldout = prepare(tmp_path, [*distinct(3), {"messages": talk}, {"messages": empty}])
    (kept,) = [d for d in train + heldout if d.messages]
    assert [m.content for m in kept.messages] == ["Who plays the violin?", "Ada does, I hear."]
    assert counts["too_short"] == 1


def test_rejected_rows_are_kept_with_line_and_reason(tmp_path) -> None:
    rows = [*distinct(30), {"title": "no text"}, {"text": 5}, "a string"]
    counts, train, heldout = prepare(tmp_path, rows, max_rejected_share=0.1)
    bad, _ = read_records(tmp_path / "out-0" / "rejected.jsonl", Rejected)
    assert [row.line for row in bad] == [31, 32, 33] and counts["rejected"] == 3
    assert bad[0].row == {"title": "no text"} and "no text under 'text'" in bad[0].reason
    assert "expected an object, not str" in bad[2].reason
    assert len(train) + len(heldout) == 30


def test_too_many_rejected_rows_stop_the_stage_and_the_first_is_named(tmp_path) -> None:
    rows = [*distinct(3), {"title": "a"}, *distinct(2), {"title": "b"}]
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, rows, max_rejected_share=0.1)
    assert "2 of 7 rows" in str(caught.value) and "raw.jsonl line 4: no text under 'text'" in str(caught.value)
    lines = (tmp_path / "out-0" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [4, 7]


def test_an_empty_source_and_one_that_is_cleaned_away_are_errors_in_words(tmp_path) -> None:
    with pytest.raises(DataError, match="the sources have no rows"):
        prepare(tmp_path, [])
    with pytest.raises(DataError, match="only 1 documents are left of 3"):
        prepare(tmp_path, [{"text": "the same long text"}] * 3)


TURNS = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"text": "A document.", "conversation": "c1"}, "text", "A document."),
        ({"text": "A document.", "messages": "m1"}, "text", "A document."),
        ({"text": "A document.", "conversations": 3}, "text", "A document."),
        ({"text": "A document.", "messages": []}, "text", "A document."),
        ({"messages": "m1", "conversation": TURNS}, "text", "Q?\nA."),
        ({"text": "A document.", "messages": TURNS}, "text", "Q?\nA."),
        ({"body": "A document.", "messages": TURNS}, "body", "A document."),
        ({"text": "A document.", "talk": TURNS}, "talk", "Q?\nA."),
        ({"conversation": "c1"}, "text", None),
        ({"text": "A document.", "messages": TURNS}, "body", "Q?\nA."),
        ({"text": "A document.", "messages": "m1"}, "body", None),
    ],
)
def test_which_column_is_the_document(tmp_path, row, field, expected) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row])
    check = check_source(TextSource(path=str(path), text_field=field), "corpus")
    assert [sample["text"] for sample in check.samples] == ([] if expected is None else [expected])
    assert {*check.read, *check.unread} == ({*row} if expected else set())
    assert [bad.reason.split(";")[0] for bad in check.rejected] == (
        [f"no text under '{field}' and no list of messages"] if expected is None else []
    )
