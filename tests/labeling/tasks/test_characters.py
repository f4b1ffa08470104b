"""Texts that not every database takes are shown with stand-ins; tasks that cannot be stored stop no others."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Message, Prompt, Rejected, Response, ResponseSet, read_records, write_records
from labeling.authors import counted
from labeling.collection import pull_collection
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.errors import RequestRefused, ServerFault
from labeling.judgements.imports import task_of
from labeling.judgements.parse import parse
from labeling.server import client as client_module
from labeling.server.client import LabelStudio, import_batches
from labeling.store.store import Store
from labeling.store.sync import sync, sync_project
from labeling.tasks.characters import NO_UNICODE, is_unicode, shown, unicode_only
from labeling.tasks.projects import Project, open_project
from labeling.tasks.tasks import Task, build_tasks, make_task
from labeling.tasks.upload import push
from tests.labeling.helpers import open_sets, response_set
from tests.labeling.judgements.test_parse import PAIRWISE, annotation, exported, preference

ODD = (
    "NUL \x00, escape \x1b[31m, DEL \x7f",
    "tab \t, line \r\n, next \x85",
    "\U0001f600 \U0001f468\u200d\U0001f469",
    "\ufffe\uffff\ufdd0",
)
ODD_SHOWN = ("NUL \u2400, escape \u241b[31m, DEL \u2421", *ODD[1:])


def odd_set(number: int, text: str) -> ResponseSet:
    prompt = Prompt(id=f"odd_{number}", messages=(Message(role="user", content=f"Question {number}\x00?"),))
    texts = (text, f"No {number}.")
    return ResponseSet(
        prompt=prompt, responses=tuple(Response(id=f"o{number}{i}", text=t) for i, t in enumerate(texts))
    )


def rationale(text: str) -> dict[str, Any]:
    return {"type": "textarea", "from_name": "rationale", "to_name": "prompt", "value": {"text": [text]}}


def test_controls_and_surrogates_have_a_stand_in_and_nothing_else_changes() -> None:
    assert tuple(map(shown, ODD)) == ODD_SHOWN
    assert shown("a\ud800b\udfff") == "a\ufffdb\ufffd" == unicode_only("a\ud800b\udfff")
    assert unicode_only("a\x00b") == "a\x00b" and shown({"a\x00": [1, None, {"b": "\x01"}]}) == {
        "a\u2400": [1, None, {"b": "\u2401"}]
    }


@given(st.text(st.characters(codec=None)))
def test_what_is_shown_can_be_stored_and_is_shown_the_same_again(text: str) -> None:
    stand_in = shown(text)
    assert "\x00" not in stand_in and is_unicode(stand_in) and shown(stand_in) == stand_in
    assert len(stand_in) == len(text)


def test_the_record_keeps_the_text_and_the_screen_has_the_stand_in() -> None:
    for kind in ("pairwise", "ranking"):
        row = odd_set(0, ODD[0])
        task = make_task(kind, row.prompt, row.responses, 0)
        assert ODD_SHOWN[0] in json.dumps(task.data, ensure_ascii=False) and task.data["prompt"] == "Question 0\u2400?"
        assert {response.text for response in task.responses.values()} == {ODD[0], "No 0."}


def test_a_task_that_was_stored_with_its_controls_is_still_the_same() -> None:
    row = odd_set(0, ODD[0])
    task = make_task("pairwise", row.prompt, row.responses, 0)
    raw = [{"id": 9, "data": task._texts, "annotations": [annotation([preference("a_1")])]}]
    assert len(parse(raw, [task], 1, "p").judgements) == 1
    assert task_of(raw[0]).data == task.data


def test_an_annotation_with_a_lone_surrogate_is_put_aside_and_can_be_written(tmp_path: Path) -> None:
    odd = annotation([preference("a_1"), rationale("a\ud800b")], 1)
    parsed = parse(exported(PAIRWISE, odd, annotation([preference("a_1")], 2, by=6)), [PAIRWISE], 2, "p")
    assert [judgement.annotation_id for judgement in parsed.judgements] == ["2"]
    assert (parsed.quarantined[0].reason, parsed.quarantined[0].line) == (NO_UNICODE, 1)
    write_records(tmp_path / "quarantine.jsonl", parsed.quarantined)
    assert len(read_records(tmp_path / "quarantine.jsonl", Rejected)[0]) == 1


def test_a_response_with_a_lone_surrogate_is_no_task_and_stops_no_other(tmp_path: Path) -> None:
    tasks, rejected = build_tasks("pairwise", [odd_set(0, "a\ud800b"), odd_set(1, "fine")], 0)
    assert len(tasks) == 1 and [row.reason for row in rejected] == [NO_UNICODE]
    write_records(tmp_path / "rejected.jsonl", rejected)


def test_times_that_are_no_numbers_are_unknown() -> None:
    for seconds in (float("inf"), float("nan"), "3", None):
        (found,) = parse(
            exported(PAIRWISE, annotation([preference("a_1")], lead_time=seconds)), [PAIRWISE], 1, "p"
        ).judgements
        assert found.lead_time == 0.0


def test_batches_are_bounded_in_tasks_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "IMPORT_BATCH", 3)
    monkeypatch.setattr(client_module, "IMPORT_CHARACTERS", 100)
    tasks = [{"data": size * "x"} for size in (1, 1, 1, 1, 80, 500, 1)]
    assert [len(batch) for batch in import_batches(tasks)] == [3, 1, 1, 1, 1]
    assert [task for batch in import_batches(tasks) for task in batch] == tasks


class Picky:
    """A server in memory that does not take tasks with some words in them."""

    url = "http://picky"

    def __init__(self, bad: dict[str, Exception], broken: bool = False) -> None:
        self.bad, self.broken, self.rows, self.requests = bad, broken, list[dict[str, Any]](), 0

    def import_tasks(self, _: int, batch: list[dict[str, Any]]) -> list[int]:
        self.requests += 1
        for word, error in self.bad.items():
            if word in json.dumps(batch):
                raise error
        self.rows += [{"data": task["data"], "total_annotations": 0, "cancelled_annotations": 0} for task in batch]
        for number, row in enumerate(self.rows, start=1):
            row["id"] = number
        return [row["id"] for row in self.rows[-len(batch) :]]

    def tasks(self, *_: Any) -> list[dict[str, Any]]:
        return self.rows

    def project(self, _: int) -> dict[str, int]:
        return {"task_number": len(self.rows)}

    def whoami(self) -> None:
        if self.broken:
            raise ServerFault(self.url, "GET whoami", "")


PROJECT = Project(
    id=1, kind="pairwise", title="t pairwise [0a1b2c3d]", overlap=1, screen_hash="0a1b2c3d", url=Picky.url
)
REFUSED = RequestRefused("POST", "http://picky", 413, "too large")
FAULT = ServerFault("http://picky", "POST /import", "cannot be converted to text")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling.tasks.upload.PAUSE_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [REFUSED, FAULT, RequestRefused("POST", "http://picky", 400, "no")])
def test_tasks_that_are_refused_are_named_and_the_others_stored(error: Exception) -> None:
    tasks = build_tasks("pairwise", [response_set(number) for number in range(64)], 0)[0]
    server: Any = Picky({"town 5?": error, "town 40?": error})
    pushed = push(server, PROJECT, tasks)
    assert len(pushed.ids) == 62 and len(pushed.rejected) == 2
    assert {row.row["prompt"]["id"] for row in pushed.rejected} == {"prompt_5", "prompt_40"}
    assert all("was refused with" in row.reason for row in pushed.rejected)
    assert "does not answer" not in pushed.rejected[0].reason and server.requests < 40
    assert len(push(server, PROJECT, tasks).ids) == 62  # again: they are tried again, the others stay


@pytest.mark.usefixtures("quick")
def test_a_server_that_takes_nothing_is_an_error_and_an_outage_stays_one() -> None:
    tasks = build_tasks("pairwise", [response_set(number) for number in range(4)], 0)[0]
    refusing: Any = Picky({"town": FAULT})
    with pytest.raises(RequestRefused, match="refused with 500: cannot be converted to text"):
        push(refusing, PROJECT, tasks)
    broken: Any = Picky({"town": FAULT}, broken=True)
    with pytest.raises(ServerFault):
        push(broken, PROJECT, tasks)
    forbidden: Any = Picky({"town 2?": RequestRefused("POST", "http://picky", 403, "no")})
    with pytest.raises(RequestRefused, match="403"):
        push(forbidden, PROJECT, tasks)


class Unstorable(Task):
    """A task whose texts go to the server as they are."""

    @property
    def data(self) -> dict[str, Any]:
        return self._texts


def check_odd_texts(owner: LabelStudio, tmp_path: Path) -> None:
    """Odd texts go to a real server and come back; the comparison has the texts as they were."""
    texts = [*ODD, "long " + 700_000 * "x y"]
    none, pairs = RankingTasks(prompts=0), PairwiseTasks(prompts=len(texts), overlap=1)
    config = LabelingConfig(title="odd texts", rankings=none, pairwise=pairs)
    opened = open_sets(owner, config, [odd_set(number, text) for number, text in enumerate(texts)], tmp_path)
    assert not opened.rejected and len(opened.tasks) == len(texts)
    for task_id in opened.batches[0].task_ids.values():
        owner.annotate(task_id, [preference("a_3"), rationale("fine \U0001f600")], 2.0)
    pulled = pull_collection(owner, opened)
    assert not pulled.quarantined and len(pulled.comparisons) == len(texts)
    assert {*texts} <= {side.text for row in pulled.comparisons for side in (row.chosen, row.rejected)}
    raw = [Unstorable(**dict(task)) for task in opened.tasks.values()]
    others = build_tasks("pairwise", [response_set(number) for number in range(6)], 0)[0]
    project = open_project(owner, "pairwise", "raw texts", 1)
    pushed = push(owner, project, [*others[:3], *raw, *others[3:]])
    assert {task.uid for task in others} <= {*pushed.ids} and len(pushed.ids) + len(pushed.rejected) == 6 + len(raw)


def check_poison(owner: LabelStudio) -> dict[int, str]:
    """An annotation on which the server fails is named, and everything else is synced; returns what was not read."""
    project = open_project(owner, "pairwise", "poisoned", 2)
    tasks = build_tasks("pairwise", [response_set(number) for number in range(6)], 0)[0]
    ids = list(push(owner, project, tasks).ids.values())
    store = Store()
    for task_id in ids[:3]:
        owner.annotate(task_id, [preference("a_1")], 1.0)
    body = json.dumps({"result": [preference("b_1")], "lead_time": 7777}).replace("7777", "1e999")
    surrogate = json.dumps({"result": [preference("b_1"), rationale("a\ud800b")], "lead_time": 1.0})
    headers = {"Authorization": f"Token {owner.token}", "Content-Type": "application/json"}
    with httpx.Client(base_url=owner.url, headers=headers, trust_env=False, timeout=60) as http:
        http.post(f"/api/tasks/{ids[1]}/annotations/", content=body)
        http.post(f"/api/tasks/{ids[4]}/annotations/", content=surrogate)
    done = sync_project(owner, store, project.id)
    assert done is not None and done.tasks_read == 6 and not done.rejected
    (key,) = (row.project for row in store.projects())
    good = [len(counted(row["annotations"])) for row in store.current(key)]
    assert good == [1, 1, 1, 0, 0, 0]
    parsed = parse(store.current(key), tasks, 2, "p")
    assert len(parsed.judgements) == 3 and len(parsed.quarantined) == len(done.set_aside)
    assert {row.line for row in parsed.quarantined} == {*done.set_aside}
    owner.annotate(ids[5], [preference("a_1")], 1.0)
    others = open_project(owner, "pairwise", "beside the poison", 1)
    push(owner, others, tasks[:2])
    report = sync(owner, store, [project.id, others.id])
    assert {row.project.number for row in report.synced} == {project.id, others.id} and not report.problems
    assert sum(len(counted(row["annotations"])) for row in store.current(key)) == 4
    for number in done.set_aside:
        owner.delete(f"/api/annotations/{number}/")
    after = sync_project(owner, store, project.id, whole=True)
    assert after is not None and not after.unreadable and not after.set_aside
    return done.set_aside


@pytest.mark.server
def test_odd_texts_on_sqlite(owner: LabelStudio, tmp_path: Path) -> None:
    check_odd_texts(owner, tmp_path)


@pytest.mark.server
def test_poison_on_sqlite(owner: LabelStudio) -> None:
    unread = check_poison(owner)
    assert len(unread) == 2 and all("the server fails on it" in reason for reason in unread.values())
