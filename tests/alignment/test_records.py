"""Record files: strict validation on reading, complete on writing, no row dropped silently."""

import pytest
from pydantic import ValidationError

from alignment.records import Document, Message, Prompt, Response, ResponseSet, read_records, stable_id, write_records
from tests.alignment.tiny_world import comparison, demonstration, prompt, user

TALK = (*user("Who?"), Message(role="assistant", content="Ada."), *user("Which 漢字?"))


@pytest.mark.parametrize(
    "record",
    [
        prompt("Who is “Ada”?\n", kind="open", split="heldout", meta={"n": 1}),
        demonstration("Who?", "Ada 🎉"),
        comparison("Who?", "Ada", "Bo", strength=3, criteria={"helpful": -2}, annotation_id="7", annotator_id="ann"),
        Document(messages=TALK),
        ResponseSet(prompt=prompt("Who?"), responses=(Response(id="a", text=""), Response(id="b", text="Bo"))),
    ],
)
def test_what_is_written_is_read(tmp_path, record) -> None:
    assert write_records(tmp_path / "new" / "rows.jsonl", [record, record]) == 2
    assert read_records(tmp_path / "new" / "rows.jsonl", type(record)) == ([record, record], [])


def test_a_row_that_does_not_fit_comes_back_with_its_line_and_the_reason(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    good = Response(id="a", text="b").model_dump_json()
    rows = [good, "", "{not json", '{"id": "a"}', '{"id": "", "text": "b"}', good, '{"id": "a", "text": "b", "x": 1}']
    file.write_bytes("\n".join(rows).encode() + b'\n{"id": "\xff"}\n[1]\n')
    kept, bad = read_records(file, Response)
    assert len(kept) == 2
    assert [row.line for row in bad] == [3, 4, 5, 7, 8, 9]
    reasons = ["not a line of UTF-8 JSON", "text: Field required", "id: String should", "x: Extra inputs", "UTF-8"]
    assert all(part in row.reason for part, row in zip(reasons, bad, strict=False)), bad
    assert bad[1].row == {"id": "a"} and bad[1].file == str(file)


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    write_records(file, [Response(id="old", text="")])

    def broken():
        yield Response(id="new", text="")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_records(file, broken())
    assert [row.id for row in read_records(file, Response)[0]] == ["old"]


def test_no_rows_make_an_empty_file(tmp_path) -> None:
    assert write_records(tmp_path / "rows.jsonl", []) == 0
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_a_prompt_waits_for_the_assistant() -> None:
    with pytest.raises(ValidationError, match="must not end with an assistant turn"):
        Prompt(id="p", messages=TALK[:2])
    with pytest.raises(ValidationError):
        Prompt(id="p", messages=())


def test_the_text_of_a_prompt_names_the_speakers_where_there_are_several() -> None:
    assert prompt("Who?").text == "Who?"
    assert Prompt(id="p", messages=TALK).text == "User: Who?\n\nAssistant: Ada.\n\nUser: Which 漢字?"


def test_a_document_has_text_or_turns() -> None:
    for wrong in ({}, {"text": "a", "messages": TALK}):
        with pytest.raises(ValidationError, match="either `text` or `messages`"):
            Document(**wrong)
    assert Document(messages=TALK).plain == "Who?\nAda.\nWhich 漢字?"


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Response(id="a", text="b").text = "c"


def test_stable_ids_tell_parts_apart() -> None:
    assert stable_id("p", "a", "b") == stable_id("p", "a", "b")
    different = [("p", "a", "b"), ("p", "ab"), ("p", "a", "b", ""), ("q", "a", "b")]
    assert len({stable_id(*parts) for parts in different}) == 4
    assert stable_id("p", 1).startswith("p_") and len(stable_id("p", 1)) == 14
