"""Who an annotation belongs to, who changed it, and whose judgement it therefore is."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from labeling.authors import account, author, judges, last_author
from labeling.judgements.imports import import_export
from labeling.judgements.parse import parse
from labeling.reports.status import annotator_statuses
from labeling.store.store import Store
from tests.conftest import SHARED_DATA
from tests.labeling.judgements.test_imports import write
from tests.labeling.judgements.test_parse import PAIRWISE, annotation, exported, preference
from tests.labeling.store.test_store import NOON, PROJECT, reading, said, task
from tests.labeling.store.test_store import row as stored_row

CASES = SHARED_DATA.parent / "cases" / "label-studio"
PERSON = {"id": 7, "email": "Paula@Example.org", "first_name": "Paula", "last_name": ""}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (PERSON, 7),
        ({"email": "Paula@Example.org"}, "paula@example.org"),
        (" Paula@Example.org", "paula@example.org"),
        ("7", 7),
        (0, 0),
        (True, None),
        (None, None),
        ("", None),
        ({}, None),
        ([7], None),
    ],
)
def test_an_account_is_a_number_an_object_or_an_address(value: Any, expected: Any) -> None:
    assert account(value) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"completed_by": 5, "updated_by": 5}, 5),
        ({"completed_by": 5, "updated_by": 6}, 6),  # edited, or posted in the name of 5
        ({"completed_by": 5, "updated_by": None, "ground_truth": True}, 5),  # came with an imported task
        ({"completed_by": 5}, 5),
        ({"completed_by": None, "updated_by": 6}, 6),
        ({"completed_by": None, "updated_by": None}, None),
        ({"completed_by": PERSON, "updated_by": 7}, 7),
        ({"completed_by": "a@b.org", "updated_by": 7}, "a@b.org"),  # may be the same person
        ({"completed_by": 5, "updated_by": 6, "ground_truth": True}, None),  # 6 may only have starred it
        ({"completed_by": 5, "updated_by": 5, "ground_truth": True}, 5),
    ],
)
def test_the_author_is_who_saved_the_last_version(fields: dict[str, Any], expected: Any) -> None:
    assert author(fields) == expected


def version(by: int | None, saved_by: int | None, result: str, **more: Any) -> dict[str, Any]:
    return {"completed_by": by, "updated_by": saved_by, "result": [result], "was_cancelled": False} | more


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([version(5, 5, "a"), version(5, 6, "a", ground_truth=True)], 5),  # starred
        ([version(5, 5, "a"), version(5, 6, "a", ground_truth=True), version(5, 6, "a")], 5),  # and not any more
        ([version(5, 5, "a"), version(5, 6, "b")], 6),
        ([version(5, 5, "a"), version(5, 6, "b"), version(5, None, "b")], 6),  # the account of 6 was deleted
        ([version(5, 5, "a"), version(5, 6, "b", ground_truth=True)], None),  # both changed and starred
        ([version(5, 6, "a", ground_truth=True), version(5, 5, "a", ground_truth=True)], 5),  # saved again by 5
        ([version(5, 5, "a", was_cancelled=True), version(5, 6, "a")], 6),  # 6 took the skip back
        ([version(5, 5, "a"), version(5, 6, "b"), version(5, 5, "c")], 5),
    ],
)
def test_a_version_with_the_same_result_is_no_new_judgement(versions: list[Any], expected: int | None) -> None:
    assert last_author(versions) == expected


def test_an_edited_annotation_is_the_judgement_of_who_edited_it() -> None:
    edited = annotation([preference("b_3")], 1, by=5, updated_by=6, updated_at="2026-01-03")
    (found,) = parse(exported(PAIRWISE, edited), [PAIRWISE], 2, "p").judgements
    assert (found.annotator_id, found.first_annotator_id, found.created_at) == ("6", "5", "2026-01-03")
    assert found.lead_time == 0.0  # the 2.5 s are those of account 5


def test_who_edits_and_also_judges_a_task_counts_once() -> None:
    own = annotation([preference("a_1")], 2, by=6, at="2026-01-02", updated_by=6)
    edited = annotation([preference("b_3")], 1, by=5, at="2026-01-01", updated_by=6, updated_at="2026-01-03")
    parsed = parse(exported(PAIRWISE, own, edited), [PAIRWISE], 2, "p")
    assert [(j.annotation_id, j.annotator_id) for j in parsed.judgements] == [("1", "6")]
    assert [row.reason for row in parsed.quarantined] == ["superseded by a later judgement of the same annotator"]
    assert judges([own, edited]) == 1 and judges([own, annotation([], 3, by=5)]) == 2
    assert judges([own, annotation([], 3, was_cancelled=True), *2 * [annotation([], 4, by=None)]]) == 3


def test_what_may_only_be_starred_is_put_aside_with_both_names() -> None:
    starred = annotation([preference("b_3")], 1, by=5, updated_by=6, ground_truth=True)
    parsed = parse(exported(PAIRWISE, starred), [PAIRWISE], 2, "p")
    assert not parsed.judgements
    assert "account 6 changed or only starred the annotation of account 5" in parsed.quarantined[0].reason


def test_a_skip_that_another_person_saved_is_theirs() -> None:
    skipped = annotation([], 1, by=5, updated_by=6, was_cancelled=True)
    assert parse(exported(PAIRWISE, skipped), [PAIRWISE], 2, "p").skips == {"6": 1}


def test_the_store_finds_the_author_in_the_history_and_keeps_both_names() -> None:
    store = Store()
    first = said(1, [preference("a_1")], by=5, updated_by=5)
    starred = first | {"updated_by": 6, "ground_truth": True}
    for turn, raw in enumerate((first, starred, starred | {"result": [preference("b_1")], "ground_truth": False})):
        shown = stored_row(1, raw, data=task(1, "pairwise").data)
        store.record(PROJECT, [shown], reading(at=NOON + timedelta(minutes=turn)))
        ((current,),) = [row["annotations"] for row in store.current(PROJECT.project)]
        assert author(current) == (5, 5, 6)[turn] and current["completed_by"] == 5
    assert [(v.annotator, v.raw["updated_by"]) for v in store.history(PROJECT.project, 1)] == [(5, 5), (5, 6), (5, 6)]


def test_statistics_name_the_author_and_not_the_owner_of_an_edited_annotation() -> None:
    own, edited = said(1, [], by=5), said(2, [], by=5) | {"updated_by": 6, "lead_time": 600.0}
    by_id = {status.annotator: status for status in annotator_statuses([own, edited])}
    assert {number: status.judgements for number, status in by_id.items()} == {5: 1, 6: 1}
    assert (by_id[5].name, by_id[5].median_seconds) == ("somebody@rlhf.local", 30.0)
    assert (by_id[6].name, by_id[6].median_seconds) == ("", None)


def test_snapshots_name_people_as_objects_and_other_exports_by_address(tmp_path: Path) -> None:
    choice = [preference("a_2")]
    for by, expected in ((PERSON, "7"), ("Paula@Example.org", "paula@example.org"), ({"email": "a@b.org"}, "a@b.org")):
        found = import_export(write(tmp_path / "export.json", exported(PAIRWISE, annotation(choice, by=by))))
        assert [row.annotator_id for row in found.comparisons] == [expected]
    people = [annotation(choice, number, by=by) for number, by in enumerate(("b@b.org", 10, PERSON), start=1)]
    found = import_export(write(tmp_path / "export.json", exported(PAIRWISE, *people)))
    assert [row.annotator_id for row in found.comparisons] == ["b@b.org", "7", "10"]


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in {CASES}")
def test_exports_that_people_really_have() -> None:
    edited = import_export(CASES / "edited_by_another.json")
    assert [(j.annotator_id, j.first_annotator_id) for j in edited.judgements] == 2 * [("2", "1")]
    snapshot = import_export(CASES / "snapshot_whole_people.json")
    assert {row.annotator_id for row in snapshot.comparisons} == {"1"} and len(snapshot.comparisons) == 5
