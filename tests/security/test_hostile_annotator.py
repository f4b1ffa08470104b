"""A hostile annotator on a real server: honest judgements all count, the rest is set aside with reasons, nothing stops.

The server has no guard here for what is posted with the owner's token: what a server of others would store.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.annotation.progress import hints
from labeling.collection import Collection, progress, pull_collection, reopen_full, sync_collection
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.errors import RequestRefused
from labeling.reports.report import Plan, reports
from labeling.server.client import LabelStudio
from labeling.server.users import Account, ensure_account
from labeling.store.store import Store
from labeling.store.sync import sync
from tests.labeling.helpers import TOKEN, open_sets, response_set
from tests.labeling.judgements.test_parse import preference

pytestmark = pytest.mark.server
VICTIM = "VICTIM"  # stands for the id of the victim's account in a body
ODD_TEXTS = ("\ud800", "a\udfffb", "\x00", "\x1b]0;x\x07", "\u202egnp", "\U0001f600" * 9, "\x9b31m", "x" * 70_000)
ODD_NUMBERS = ("1e308", "-7", "0", "9" * 30, "9" * 4000, "9" * 5000, "1e999", "NaN", "-Infinity")
ODD_RESULTS = ('{"a": 1}', '"[]"', "null", "[[]]", "[1, null]", '[{"foo": "bar"}]', "[" * 300 + "]" * 300, "[{}]")


def body(rng: random.Random, number: int) -> str:
    """A generated annotation as raw JSON text, of a kind that `number` chooses."""
    good, text = json.dumps([preference("b_3")]), json.dumps(rng.choice(ODD_TEXTS))
    match number % 8:
        case 0:
            return f'{{"result": [{{"from_name": {text}, "value": {{{text}: {text}}}}}]}}'
        case 1:
            return f'{{"result": [{{"x": {rng.choice(ODD_NUMBERS)}}}]}}'
        case 2:
            return f'{{"result": {good}, "lead_time": {rng.choice(ODD_NUMBERS)}, "completed_by": {VICTIM}}}'
        case 3:
            return f'{{"result": {rng.choice(ODD_RESULTS)}}}'
        case 4:
            return f'{{"result": {good}, "completed_by": {VICTIM}, "updated_by": {VICTIM}, "ground_truth": true}}'
        case 5:
            return json.dumps({"result": [{"x": "y" * rng.choice((10, 900_000, 1_200_000))}]})
        case 6:
            return f'{{"result": {good}, "completed_by": {VICTIM}, "was_cancelled": true, "unique_id": "u{number}"}}'
    return json.dumps({"completed_by": VICTIM, "updated_at": "9999-01-01", "id": 1}).replace(f'"{VICTIM}"', VICTIM)


@pytest.fixture
def people(owner: LabelStudio) -> Iterator[tuple[list[LabelStudio], list[int], Account]]:
    """Clients and ids of two honest annotators, and a sock puppet that signed up by itself."""
    accounts = [ensure_account(owner, f"{name}@honest.local", f"password of {name}") for name in ("hana", "ivo")]
    sock = ensure_account(owner, "sock@puppet.local", "password of the sock", "\x1b[31mowner")
    with ExitStack() as stack:
        clients = [stack.enter_context(LabelStudio(owner.url, one.token.get_secret_value())) for one in accounts]
        yield clients, [one.id for one in accounts], sock


def opened(owner: LabelStudio, title: str, tasks: int, out: Path) -> Collection:
    config = LabelingConfig(
        title=title, rankings=RankingTasks(prompts=0), pairwise=PairwiseTasks(prompts=tasks, overlap=2)
    )
    return open_sets(owner, config, [response_set(number) for number in range(tasks)], out)


def attack(owner: LabelStudio, people: Any, out: Path, count: int, tasks: int) -> None:
    """`count` generated annotations are posted while two people judge; sync, status and a pull say what was honest."""
    clients, ids, sock = people
    (batch,) = (collection := opened(owner, f"hostile {count}", tasks, out)).batches
    rng, task_ids, store, known = random.Random(count), list(batch.task_ids.values()), Store(), {*ids}
    honest: Counter[int] = Counter()
    headers = {"Content-Type": "application/json"}
    tokens = (TOKEN, sock.token.get_secret_value())
    with httpx.Client(base_url=owner.url, headers=headers, trust_env=False, timeout=120) as http:
        for number in range(count):
            text = body(rng, number).replace(VICTIM, str(rng.choice(ids)))
            path, token = f"/api/tasks/{rng.choice(task_ids)}/annotations/", tokens[number % 5 == 0]
            http.post(path, content=text, headers={"Authorization": f"Token {token}"})
            if number % max(count // (2 * tasks), 1) == 0 and len(honest) < 2 * tasks:
                turn = len(honest)
                client, task_id = clients[turn % 2], task_ids[turn // 2]
                honest[client.annotate(task_id, [preference("a_2")], 5.0)] += 1
            if number % max(count // 3, 1) == 0:
                assert not sync(owner, store, [batch.project.id]).problems
    assert len(honest) == 2 * tasks
    report = sync(owner, store, [batch.project.id], whole=True)
    assert not report.problems and not report.synced[0].unreadable
    synced = sync_collection(owner, collection, store)
    assert progress(collection, store, synced, known).share == 1.0
    pulled = pull_collection(owner, collection, store, known=known)
    assert {int(row.annotation_id) for row in pulled.all_judgements} == {*honest}
    assert {row.annotator_id for row in pulled.all_judgements} == {str(number) for number in ids}
    assert all(row.reason for row in pulled.quarantined) and len(pulled.quarantined) > count / 4
    plan = {(owner.url, batch.project.id): Plan(overlap=2, uids=frozenset(batch.task_ids))}
    (page,) = reports(store, [batch.project.id], known={owner.url: known}, plans=plan)
    assert (page.status.done, page.status.needed) == (2 * tasks, 2 * tasks)
    assert sum(map(len, page.set_aside.values())) == len(pulled.quarantined)
    assert max(len(row.model_dump_json()) for row in pulled.quarantined) < 1_500_000


def test_honest_judgements_count_beside_generated_ones(owner: LabelStudio, people: Any, tmp_path: Path) -> None:
    attack(owner, people, tmp_path, 60, 5)


@pytest.mark.long
def test_honest_judgements_count_beside_a_thousand(owner: LabelStudio, people: Any, tmp_path: Path) -> None:
    attack(owner, people, tmp_path, 1000, 40)


def offered(client: LabelStudio, project: int) -> int | None:
    """The task that somebody is asked to judge."""
    try:
        return int(client.post("/api/dm/actions", {}, id="next_task", project=project)["id"])
    except RequestRefused as refusal:
        assert refusal.status == 404
        return None


def test_tasks_that_are_full_with_what_does_not_count_are_offered_again(
    owner: LabelStudio, people: Any, tmp_path: Path
) -> None:
    """A sock that nobody named and a named annotator answer every task with nothing, as on a server of others."""
    clients, ids, sock = people
    (batch,) = (collection := opened(owner, "full", 3, tmp_path)).batches
    mallory = ensure_account(owner, "mallory@honest.local", "password of mallory")
    known, store, number = {*ids, mallory.id}, Store(), batch.project.id
    for account in (sock, mallory):
        with LabelStudio(owner.url, account.token.get_secret_value()) as client:
            for task in batch.task_ids.values():
                client.annotate(task, [], 1.0)
    assert [offered(client, number) for client in clients] == [None, None]
    status = progress(collection, store, sync_collection(owner, collection, store), known)
    assert status.full == {number: dict.fromkeys(batch.task_ids.values(), 4)}
    plan = {(owner.url, number): Plan(overlap=2, uids=frozenset(batch.task_ids))}
    (page,) = reports(store, [number], known={owner.url: known}, plans=plan)
    assert any("3 tasks" in hint and "full" in hint for hint in hints([page]))
    for _ in range(2):  # the second time there is nothing to do
        reopen_full(owner, status.full)
    for client in clients:
        while (task := offered(client, number)) is not None:
            client.annotate(task, [preference("a_2")], 5.0)
    status = progress(collection, store, sync_collection(owner, collection, store), known)
    assert status.share == 1.0 and status.full == {number: {}}
    pulled = pull_collection(owner, collection, store, known=known)
    assert {row.annotator_id for row in pulled.all_judgements} == {str(person) for person in ids}
    assert len(pulled.quarantined) == 6 and not store.lost(store.projects()[0].project)


def test_an_imported_judgement_in_the_name_of_somebody_else_does_not_count(
    owner: LabelStudio, people: Any, tmp_path: Path
) -> None:
    _, ids, _ = people
    (batch,) = (collection := opened(owner, "imported names", 1, tmp_path)).batches
    forged = {"completed_by": ids[0], "result": [preference("b_3")], "ground_truth": False}
    rows = [{"data": batch.tasks[0].data, "annotations": [forged]}]
    owner.post(f"/api/projects/{batch.project.id}/import", rows)
    pulled = pull_collection(owner, collection, known={*ids})
    assert not pulled.all_judgements
    assert [f"in the name of account {ids[0]}" in row.reason for row in pulled.quarantined] == [True]


def test_a_project_with_our_signature_by_somebody_else_is_told_and_not_followed(
    owner: LabelStudio, people: Any, tmp_path: Path
) -> None:
    (batch,) = opened(owner, "signature", 1, tmp_path).batches
    clients, _, _ = people
    report = sync(clients[0], store := Store())  # to this account, the project is somebody else's
    assert not any(row.project.number == batch.project.id for row in report.synced) and not store.projects()
    assert any(f"project {batch.project.id} has our signature" in problem for problem in report.problems)


def test_settings_that_were_changed_on_the_server_are_told_and_not_believed(
    owner: LabelStudio, people: Any, tmp_path: Path
) -> None:
    clients, ids, _ = people
    (batch,) = (collection := opened(owner, "settings", 1, tmp_path)).batches
    owner.patch(f"/api/projects/{batch.project.id}/", {"maximum_annotations": 50, "show_collab_predictions": True})
    for client in clients:
        client.annotate(next(iter(batch.task_ids.values())), [preference("a_1")], 1.0)
    store = Store()
    (result,) = sync(owner, store, [batch.project.id]).synced
    assert result.settings == ("show_collab_predictions is True, not False",)
    synced = sync_collection(owner, collection, store)
    assert progress(collection, store, synced, {*ids}).needed == 2
    plan = {(owner.url, batch.project.id): Plan(overlap=2, uids=frozenset(batch.task_ids))}
    (page,) = reports(store, [batch.project.id], plans=plan)
    assert (page.status.needed, page.status.overlap_on_server) == (2, 50)
