"""JSON exports of Label Studio as judgements and comparisons."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.records import Message
from labeling.errors import TaskError
from labeling.judgements.comparisons import comparisons
from labeling.judgements.imports import import_export
from labeling.tasks.tasks import Task, make_task
from tests.labeling.helpers import response_set
from tests.labeling.judgements.test_parse import (
    PAIRWISE,
    RANKED,
    RANKING,
    WRITING,
    annotation,
    answer,
    exported,
    preference,
    ranker,
    rating,
)

TURNS = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Who?"),
    Message(role="assistant", content="Mara."),
    Message(role="user", content="Who is she?"),
)
ASKED = response_set(5)
TALK = make_task("pairwise", ASKED.prompt.model_copy(update={"messages": TURNS}), ASKED.responses, 0)


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_an_export_becomes_judgements_comparisons_and_demonstrations(tmp_path: Path) -> None:
    order = list(RANKING.shown)[::-1]
    rows = [
        *exported(RANKING, annotation([ranker(order), RANKED], 1)),
        *exported(PAIRWISE, annotation([preference("b_2"), rating("a_helpful", 1), rating("b_helpful", 4)], 2, by=6)),
        *exported(TALK, annotation([preference("tie")], 3), annotation([], 4, was_cancelled=True)),
        *exported(WRITING, annotation([answer("Mara Lind.")], 5)),
    ]
    found = import_export(write(tmp_path / "export.json", rows))
    assert not found.quarantined and found.skips == 1 and len(found.judgements) == 4
    assert len(found.comparisons) == 7 and len(found.ties) == 1
    assert found.ties[0].prompt.messages == TURNS
    b_won = found.comparisons[-1]
    assert (b_won.chosen.id, b_won.strength, b_won.criteria, b_won.chosen_first) == (
        PAIRWISE.shown[1],
        2,
        {"helpful": 3},
        False,
    )
    assert (b_won.task_uid, b_won.annotation_id, b_won.annotator_id) == (PAIRWISE.uid, "2", "6")
    assert [row.completion for row in found.demonstrations] == ["Mara Lind."]
    assert {row.prompt.id for row in found.comparisons} != {RANKING.prompt.id}  # our id never left our side


def test_texts_and_winners_are_those_of_the_tasks_we_know(tmp_path: Path) -> None:
    rows = exported(RANKING, annotation([ranker(list(RANKING.shown)), RANKED], 1))
    found = import_export(write(tmp_path / "export.json", rows))
    ours, _ = comparisons(found.judgements, {RANKING.uid: RANKING})
    assert [(r.chosen.text, r.rejected.text, r.strength) for r in found.comparisons] == [
        (r.chosen.text, r.rejected.text, r.strength) for r in ours
    ]
    assert all(row.chosen_first for row in found.comparisons)  # left in the order shown


def test_an_export_of_an_older_screen_has_no_turns_before(tmp_path: Path) -> None:
    rows = exported(PAIRWISE, annotation([preference("a_1")]))
    rows[0]["data"] = {name: value for name, value in PAIRWISE.data.items() if name != "before"}
    found = import_export(write(tmp_path / "export.json", rows))
    assert len(found.comparisons) == 1 and not found.quarantined


def changed(task: Task, **data: Any) -> dict[str, Any]:
    return {"id": 1, "data": task.data | data, "annotations": []}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"foo": "bar"}, "not a task with `data` and `annotations`"),
        ("text", "not a task with `data`"),
        ({"data": {"text": "x"}, "annotations": []}, "content: Input should be a valid string"),
        ({"data": {"prompt": "x"}, "annotations": []}, "the task has no `uid`"),
        ({"data": {"prompt": "x", "uid": "u"}, "annotations": ["x"]}, "an annotation is not an object"),
        (changed(PAIRWISE, score=3), "differ from what rlhf-flows uploads"),
        (changed(PAIRWISE, b_id=PAIRWISE.shown[0]), "with unique ids"),
        (changed(PAIRWISE, response_b=7), "text: Input should be a valid string"),
        (changed(RANKING, responses="abc"), "not a list of objects"),
        (changed(RANKING, responses=[{"id": "r", "body": "x"}]), "2 to 9 responses"),
        (changed(PAIRWISE, before="x"), "not a list of turns"),
        (changed(PAIRWISE, before=[{"who": "Robot", "text": "x"}]), "role"),
    ],
)
def test_tasks_that_are_not_ours_are_put_aside(tmp_path: Path, row: Any, reason: str) -> None:
    rows = [*exported(RANKING, annotation([ranker(list(RANKING.shown)), RANKED])), row]
    found = import_export(write(tmp_path / "export.json", rows))
    assert len(found.comparisons) == 6
    (bad,) = found.quarantined
    assert reason in bad.reason and bad.line == 2 and bad.file.endswith("export.json")


def test_a_task_that_is_there_twice_counts_once_and_is_not_lost(tmp_path: Path) -> None:
    first, second = (annotation([preference(choice)], number) for number, choice in enumerate(("a_1", "a_2"), start=1))
    rows = exported(PAIRWISE, first) + exported(PAIRWISE, second)
    found = import_export(write(tmp_path / "export.json", rows))
    assert len(found.comparisons) == 1 and "duplicate of an earlier task" in found.quarantined[0].reason


def test_strange_annotations_are_put_aside_with_their_id(tmp_path: Path) -> None:
    rows = exported(PAIRWISE, annotation([{"foo": "bar"}], 77), annotation([preference("a_1")], 78, by=6))
    found = import_export(write(tmp_path / "export.json", rows))
    assert len(found.comparisons) == 1
    assert (found.quarantined[0].line, "without a control name" in found.quarantined[0].reason) == (77, True)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "\x00", "[" * 100_000])
def test_a_file_that_is_no_export_is_an_error_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(TaskError, match="export the project as JSON"):
        import_export(tmp_path / "export.json")


def test_an_export_in_utf_16_is_the_same(tmp_path: Path) -> None:
    rows = exported(PAIRWISE, annotation([preference("a_1")], 78, by=6))
    plain = import_export(write(tmp_path / "export.json", rows))
    (tmp_path / "export.json").write_text(json.dumps(rows), encoding="utf-16")
    assert import_export(tmp_path / "export.json").comparisons == plain.comparisons and len(plain.comparisons) == 1
    (tmp_path / "export.json").write_bytes(json.dumps(rows).encode("utf-16")[:-1])
    with pytest.raises(TaskError, match="not valid JSON"):
        import_export(tmp_path / "export.json")


def test_an_export_may_be_zipped_and_have_a_byte_order_mark(tmp_path) -> None:
    utf16 = [("\ufeff" + "[]").encode(encoding) for encoding in ("utf-16-le", "utf-16-be")]
    for raw in (b"\xef\xbb\xbf[]", gzip.compress(b"[]"), *utf16, gzip.compress(utf16[0])):
        (tmp_path / "export.json").write_bytes(raw)
        assert import_export(tmp_path / "export.json").judgements == []
    (tmp_path / "export.json").write_bytes(gzip.compress(b"[]" * 50)[:-9])
    with pytest.raises(TaskError, match="not valid JSON"):
        import_export(tmp_path / "export.json")
