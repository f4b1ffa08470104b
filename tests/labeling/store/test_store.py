"""The store is append-only, and the status computed from it."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labeling.errors import StoreError
from labeling.reports.report import reports
from labeling.reports.status import pace
from labeling.screens.render import screen
from labeling.simulation.crew import pairwise_result, ranking_result
from labeling.store import schema
from labeling.store import store as stores
from labeling.store.store import Store
from labeling.store.versions import Changes, SeenProject, Sync, canonical, content_hash, moment, stamp
from labeling.tasks.tasks import Task, make_task
from tests.labeling.helpers import response_set

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROJECT = SeenProject(
    project="7@2026-03-01T08:00:00Z",
    number=7,
    url="http://here",
    title="trial ranking [0a1b2c3d]",
    overlap=2,
    config_hash="0a1b2c3d",
    config="<View/>",
)


def task(number: int, kind: Any = "ranking") -> Task:
    row = response_set(number)
    return make_task(kind, row.prompt, row.responses, 0)


def said(number: int, result: Any, by: int | None = 5, hour: int = 10, **more: Any) -> dict[str, Any]:
    when = stamp(NOON.replace(hour=hour))
    return {
        "id": number,
        "completed_by": by,
        "result": result,
        "was_cancelled": False,
        "lead_time": 30.0,
        "task": 1,
        "created_at": when,
        "updated_at": when,
        "created_username": f" somebody@rlhf.local, {by}",
        "created_ago": "3 minutes",
    } | more


def row(number: int, *annotations: dict[str, Any], data: Any = None) -> dict[str, Any]:
    shown = task(number).data if data is None else data
    return {"id": number, "data": shown, "updated_at": stamp(NOON), "annotations": list(annotations)}


def reading(*, whole: bool = True, at: datetime = NOON) -> Sync:
    return Sync(seen_at=at, whole=whole, newest=at, cursor=at, tasks_read=1)


def test_every_version_stays_and_only_what_is_new_is_added(tmp_path: Path) -> None:
    store, order = Store(tmp_path / "deep" / "a.db"), task(1).shown
    first, edited = said(1, ranking_result(order)), said(1, ranking_result(order[::-1]))
    assert store.record(PROJECT, [row(1, first)], reading()) == Changes(added=1)
    same = first | {"created_ago": "1 hour", "created_username": " renamed@rlhf.local, 5"}
    assert store.record(PROJECT, [row(1, same)], reading()) == Changes()
    assert store.record(PROJECT, [row(1, edited)], reading(whole=False)) == Changes(changed=1)
    assert store.record(PROJECT, [row(1)], reading(whole=False)) == Changes(deleted=1)
    assert store.record(PROJECT, [row(1)], reading()) == Changes()
    versions = store.history(PROJECT.project, 1)
    assert [one.deleted for one in versions] == ["", "", "annotation"]
    assert versions[0].raw == first and versions[1].raw == edited and versions[2].raw == edited
    assert {one.config_hash for one in versions} == {PROJECT.config_hash}
    assert store.current(PROJECT.project) == [{"id": 1, "data": task(1).data, "annotations": []}]
    assert store.lost(PROJECT.project) == [versions[2]] and store.counts(PROJECT.project) == (1, 0)
    assert store.record(PROJECT, [row(1, edited)], reading()) == Changes(added=1)
    assert Store(tmp_path / "deep" / "a.db").current(PROJECT.project)[0]["annotations"] == [edited]


def test_an_incremental_reading_says_nothing_about_other_tasks() -> None:
    store = Store()
    store.record(PROJECT, [row(1, said(1, [])), row(2, said(2, []))], reading())
    assert store.record(PROJECT, [row(2)], reading(whole=False)) == Changes(deleted=1)
    assert store.counts(PROJECT.project) == (2, 1)
    assert store.record(PROJECT, [row(2)], reading()) == Changes(deleted=1)
    assert store.counts(PROJECT.project) == (1, 0)
    assert [one.deleted for one in store.lost(PROJECT.project)] == ["task", "annotation"]
    assert [one["id"] for one in store.current(PROJECT.project)] == [2]


def test_a_deleted_project_keeps_what_was_said_and_nobody_took_back() -> None:
    store = Store()
    store.record(PROJECT, [row(1, said(1, []), said(2, []))], reading())
    store.record(PROJECT, [row(1, said(1, []))], reading())
    assert store.record_deleted(PROJECT, NOON) == Changes(deleted=1)
    assert [one["annotations"] for one in store.current(PROJECT.project)] == [[said(1, [])]]
    assert store.projects() == [PROJECT.model_copy(update={"deleted": True})]
    assert store.counts(PROJECT.project) == (0, 0) and len(store.lost(PROJECT.project)) == 2
    store.record(PROJECT, [row(1, said(1, []))], reading())
    assert store.project(7, "http://here") == PROJECT and store.counts(PROJECT.project) == (1, 1)


def test_who_said_it_is_known_after_the_account_is_gone() -> None:
    store = Store()
    store.record(PROJECT, [row(1, said(1, [], by=5))], reading())
    assert store.record(PROJECT, [row(1, said(1, [], by=None))], reading()) == Changes(changed=1)
    assert store.current(PROJECT.project)[0]["annotations"][0]["completed_by"] == 5
    assert [one.annotator for one in store.history(PROJECT.project, 1)] == [5, 5]
    assert store.history(PROJECT.project, 1)[1].raw["completed_by"] is None


def test_the_database_refuses_to_change_or_delete(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    store.record(PROJECT, [row(1, said(1, []))], reading())
    store.close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        for table in ("projects", "tasks", "annotations", "syncs"):
            for deed in (f"UPDATE {table} SET project = 'x'", f"DELETE FROM {table}"):
                with pytest.raises(sqlite3.IntegrityError, match="the store only adds"):
                    connection.execute(deed)
        assert connection.execute("SELECT annotation, annotator FROM current_annotations").fetchall() == [(1, 5)]
        assert connection.execute("SELECT COUNT(*) FROM current_tasks").fetchone() == (1,)


def test_a_reading_that_breaks_off_stores_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with pytest.raises(KeyError):
        store.record(PROJECT, [row(1, said(1, [])), {"id": 2}], reading())
    assert not store.projects() and not store.syncs(PROJECT.project) and store.counts(PROJECT.project) == (0, 0)


def test_files_that_are_no_store_are_named(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all, " * 500)
    with pytest.raises(StoreError, match=r"letter\.txt is not an annotation store"):
        Store(tmp_path / "letter.txt")
    Store(tmp_path / "a.db").close()
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("PRAGMA user_version=9")
    with pytest.raises(StoreError, match="has format 9, this version supports 1: update"):
        Store(tmp_path / "a.db")


def test_the_database_of_another_program_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cakes ?#%.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cakes (a)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"is a database of another program \(with the table 'cakes'\)"):
        Store(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=1")
    with pytest.raises(StoreError, match=r"has no table 'annotations': it is another program's, or is damaged"):
        Store(path)
    assert path.read_bytes()[100:] == before[100:] and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_store_that_lacks_a_table_is_named(large: Path) -> None:
    with closing(sqlite3.connect(large)) as connection:
        connection.execute("DROP TABLE syncs")
    with pytest.raises(StoreError, match=r"annotations\.db has no table 'syncs': .*`rlhf restore`"):
        Store(large)


def test_a_store_has_its_own_file_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "what?cache=shared#%41.db"
    Store(path).close()
    assert {file.name for file in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("text", ["\ud800 half a pair", "a\0b", "مرحبا", "你好", "<script>", "x" * 100_000])
def test_any_text_is_kept_as_it_is(text: str) -> None:
    store, result = Store(), [{"value": {"text": [text]}}]
    store.record(PROJECT, [row(1, said(1, result), data={"uid": text, "prompt": text})], reading())
    (found,) = store.current(PROJECT.project)
    assert found["data"]["prompt"] == text and found["annotations"][0]["result"] == result


def test_times_sort_as_text_and_hashes_do_not_depend_on_order() -> None:
    assert stamp(moment("2026-03-01T12:00:00Z")) == "2026-03-01T12:00:00.000000Z"
    assert moment("2026-03-01T14:00:00.5+02:00") == NOON.replace(microsecond=500_000)
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1, "created_ago": "now"})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert canonical({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'


def test_pace_is_over_a_day_at_most() -> None:
    hours = [NOON - timedelta(hours=h) for h in (30, 29, 6, 4, 2, 1)]
    assert pace(hours, NOON) == pytest.approx(4 / 24)
    assert pace(hours[2:], NOON) == pytest.approx(4 / 6)
    assert pace([NOON], NOON) == pytest.approx(60.0)  # a minute is the shortest time that is reckoned with
    assert pace([], NOON) == pace(hours[:2], NOON) == 0.0


def test_status_by_hand() -> None:
    """Three tasks for two people each: six judgements are needed, three and a surplus one are there, since 8 o'clock.

    Two people gave the first ranking of four: one turned the last two around, so they agree on 5 of 6 pairs.
    """
    store, order = Store(), task(1).shown
    other = (*order[:2], order[3], order[2])
    rows = [
        row(
            1,
            said(1, ranking_result(order), 5, 8),
            said(2, ranking_result(other), 6, 9, lead_time=10.0),
            said(3, [{"foo": "bar"}], 9, 9, lead_time=None),
        ),
        row(2, said(4, ranking_result(task(2).shown), 5, 10, lead_time=50.0), said(5, [], 6, 11, was_cancelled=True)),
        row(3),
    ]
    for one in rows:
        for raw in one["annotations"]:
            raw["task"] = one["id"]
    store.record(PROJECT, rows, reading())
    found = reports(store)[0].status
    assert (found.tasks, found.done, found.needed, found.quarantined, found.lost) == (3, 3, 6, 1, 0)
    assert found.per_hour == pytest.approx(1.0)  # four judgements in four hours
    assert found.expected_end == NOON + timedelta(hours=3) and found.last_sync == NOON
    assert found.agreement.count == 6 and found.agreement.share == pytest.approx(5 / 6)
    assert [(a.annotator, a.name, a.judgements, a.skips, a.median_seconds) for a in found.annotators] == [
        (5, "somebody@rlhf.local", 2, 0, 40.0),
        (6, "somebody@rlhf.local", 1, 1, 10.0),
        (9, "somebody@rlhf.local", 1, 0, None),
    ]
    assert not found.screen_changed
    store.record(PROJECT.model_copy(update={"config_hash": "ffffffff"}), rows, reading())
    assert reports(store)[0].status.screen_changed
    store.record_deleted(PROJECT, NOON)
    last = reports(store)[0].status
    assert last.deleted and last.done == 3 and last.lost == 5


def test_status_of_pairs_and_of_what_is_not_ours() -> None:
    store, pair = Store(), task(1, "pairwise")
    pairwise = screen("pairwise").label_config
    project = PROJECT.model_copy(update={"title": "trial pairwise [0a1b2c3d]", "config": pairwise})
    result = pairwise_result(3.0, [[5, 5, 5], [1, 1, 1]])
    rows = [row(1, said(1, result, 5), said(2, result, 6), data=pair.data), row(2, data={"text": "of somebody else"})]
    store.record(project, rows, reading())
    assert reports(store)[0].status.agreement.share == 1.0
    strange = project.model_copy(update={"project": "8@x", "number": 8, "title": "somebody's own"})
    store.record(strange, rows, reading())
    newest = reports(store)[0].status
    assert (newest.number, newest.agreement.share, newest.done) == (8, 1.0, 2)  # its name says nothing about it


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store of many pages."""
    store = Store(tmp_path / "annotations.db")
    rows = [row(number, said(number, ranking_result(task(number).shown))) for number in range(1, 60)]
    store.record(PROJECT, rows, reading())
    store.close()
    return tmp_path / "annotations.db"


def read_all(path: Path) -> None:
    """What a sync and a status ask."""
    store = Store(path)
    store.projects()
    store.current(PROJECT.project)
    store.record(PROJECT, [], reading(whole=False))


@pytest.mark.parametrize("damage", ["header", "middle", "cut off", "page cut off"])
def test_a_damaged_store_is_named_and_stays_as_it_is(large: Path, damage: str) -> None:
    whole = large.read_bytes()
    half = len(whole) // 2 // 4096 * 4096
    content = {
        "header": b"x" * 100 + whole[100:],
        "middle": whole[:4096] + b"\xff" * (len(whole) - 4096),
        "cut off": whole[: half + 100],
        "page cut off": whole[:half],
    }[damage]
    large.write_bytes(content)
    with pytest.raises(StoreError, match=r"annotations\.db is .*damaged.*`rlhf restore`.*move the file away") as ended:
        read_all(large)
    assert "rlhf label sync" in str(ended.value) and large.read_bytes() == content


def test_an_empty_file_is_not_taken_for_a_new_store(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "EMPTY_SECONDS", 0.02)
    large.write_bytes(b"")
    with pytest.raises(StoreError, match=r"is empty, and no store is.*rlhf restore"):
        Store(large)
    assert large.read_bytes() == b""


def test_a_store_that_another_process_holds(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(large)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="is in use by another process"):
            read_all(large)
    read_all(large)


def test_a_store_that_could_not_be_created_leaves_no_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "annotations.db"
    with monkeypatch.context() as patch, pytest.raises(sqlite3.OperationalError, match="disk is full"):
        patch.setattr(Store, "_prepare", lambda self: fail_on_a_full_disk(path))
        Store(path)
    Store(path).close()


def fail_on_a_full_disk(path: Path) -> None:
    path.touch()
    raise sqlite3.OperationalError("database or disk is full")
