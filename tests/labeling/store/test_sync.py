"""The store against a real server: after a sync it equals the server, whatever happened in between."""

import multiprocessing
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from labeling.collection import pull_collection, sync_collection
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.errors import BadCredentials, ServerUnavailable, UnexpectedAnswer
from labeling.screens.render import screen
from labeling.server import client as client_module
from labeling.server.client import LabelStudio
from labeling.server.users import Account, ensure_account
from labeling.simulation.crew import ranking_result
from labeling.store.store import Store
from labeling.store.sync import sync, sync_project
from labeling.store.versions import stamp
from labeling.tasks.projects import Project, open_project
from labeling.tasks.tasks import Task, build_tasks
from labeling.tasks.upload import push, stored
from tests.labeling.faults import Faults, proxy
from tests.labeling.helpers import TOKEN, open_sets, response_set

pytestmark = pytest.mark.server
FORK = multiprocessing.get_context("fork")  # starts at once; what is killed anyway may meet a lock that nobody holds
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the threads of whatever ran before
Said = dict[int, dict[int, tuple[Any, ...]]]


def tasks_for(numbers: range) -> list[Task]:
    return build_tasks("ranking", [response_set(number) for number in numbers], 0)[0]


def opened(owner: LabelStudio, title: str, count: int) -> tuple[Project, list[Task], list[int]]:
    """A project with tasks, and the tasks' ids in their order."""
    project, tasks = open_project(owner, "ranking", title, 2), tasks_for(range(count))
    ids = push(owner, project, tasks).ids
    return project, tasks, [ids[task.uid] for task in tasks]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "annotations.db")
    yield made
    made.close()


@pytest.fixture(scope="module")
def people(owner: LabelStudio) -> list[Account]:
    return [ensure_account(owner, f"{name}@sync.local", f"password of {name}") for name in ("pia", "quinn")]


@pytest.fixture(scope="module")
def database(owner: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's own database, for faults that its API cannot make."""
    (found,) = tmp_path_factory.getbasetemp().glob("label-studio[0-9]*/data/label_studio.sqlite3")
    return found


def change(database: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        assert connection.execute(statement, values).rowcount


def on_the_server(owner: LabelStudio, project: Project) -> Said:
    """What the server has, read in another way than the sync does."""
    path = f"/api/projects/{project.id}/export"
    rows = owner.get(path, exportType="JSON", download_all_tasks="true", download_resources="false")
    return said(rows)


def said(rows: list[dict[str, Any]]) -> Said:
    names = ("result", "completed_by", "was_cancelled", "lead_time", "updated_at")
    return {row["id"]: {raw["id"]: tuple(raw[name] for name in names) for raw in row["annotations"]} for row in rows}


def in_the_store(store: Store, project: Project) -> Said:
    return said(store.current(key(store, project)))


def key(store: Store, project: Project) -> str:
    return next(one.project for one in reversed(store.projects()) if one.number == project.id)


def versions(store: Store, project: Project) -> set[int]:
    """How many versions the annotations have that the server has now."""
    numbers = [number for row in in_the_store(store, project).values() for number in row]
    return {len(store.history(key(store, project), number)) for number in numbers}


def why(client: LabelStudio, store: Store, project: Project, **options: bool) -> str:
    """Sync, and say why it was a whole one."""
    done = sync_project(client, store, project.id, **options)
    assert done is not None
    return done.why


class Deeds:
    """What people and an owner may do to a project, at random; `here` has the annotations of each task there is."""

    def __init__(self, owner: LabelStudio, people: list[LabelStudio], title: str, rng: random.Random) -> None:
        self.owner, self.people, self.rng = owner, people, rng
        self.project, tasks, ids = opened(owner, title, 5)
        self.here: dict[int, list[int]] = {task_id: [] for task_id in ids}
        self.shown = dict(zip(ids, tasks, strict=True))
        self.spare = tasks_for(range(100, 120))
        self.ever: set[int] = set()

    def some(self) -> None:
        """One to four deeds."""
        weights: dict[Callable[[], None], int] = {
            self.create: 8,
            self.skip: 2,
            self.edit: 4,
            self.delete: 3,
            self.delete_task: 1,
            self.clear_in_bulk: 1,
            self.add_task: 1,
            self.edit_task: 1,
        }
        for deed in self.rng.choices(list(weights), list(weights.values()), k=self.rng.randint(1, 4)):
            deed()

    def task(self) -> int:
        return self.rng.choice(list(self.here))

    def annotation(self) -> tuple[int, int] | None:
        pairs = [(task_id, number) for task_id, numbers in self.here.items() for number in numbers]
        return self.rng.choice(pairs) if pairs else None

    def order(self, task_id: int) -> list[dict[str, Any]]:
        return ranking_result(self.rng.sample(self.shown[task_id].shown, 4))

    def create(self, skip: bool = False) -> None:
        task_id, person = self.task(), self.rng.choice(self.people)
        result = self.rng.choice([self.order(task_id), [{"from_name": "foo", "value": {}}], []])
        self.here[task_id].append(person.annotate(task_id, result, self.rng.random(), skip=skip))
        self.ever.add(self.here[task_id][-1])

    def skip(self) -> None:
        self.create(skip=True)

    def edit(self) -> None:
        if (chosen := self.annotation()) is not None:
            changed = {"result": self.order(chosen[0]), "was_cancelled": self.rng.random() < 0.3}
            self.owner.patch(f"/api/annotations/{chosen[1]}/", changed)

    def delete(self) -> None:
        if (chosen := self.annotation()) is not None:
            self.owner.delete(f"/api/annotations/{chosen[1]}/")
            self.here[chosen[0]].remove(chosen[1])

    def delete_task(self) -> None:
        if len(self.here) > 2:
            task_id = self.task()
            self.owner.delete(f"/api/tasks/{task_id}/")
            del self.here[task_id]

    def clear_in_bulk(self) -> None:
        task_id = self.task()
        selected = {"selectedItems": {"all": False, "included": [task_id]}}
        self.owner.post("/api/dm/actions", selected, id="delete_tasks_annotations", project=self.project.id)
        self.here[task_id] = []

    def add_task(self) -> None:
        task = self.spare.pop()
        task_id = push(self.owner, self.project, [task]).ids[task.uid]
        self.here[task_id], self.shown[task_id] = [], task

    def edit_task(self) -> None:
        task_id = self.task()
        data = self.shown[task_id].data | {"prompt": f"{self.rng.random()}"}
        self.owner.patch(f"/api/tasks/{task_id}/", {"data": data})


@pytest.mark.parametrize("seed", range(2))
def test_after_any_sequence_of_deeds_the_store_equals_the_server(
    owner: LabelStudio, people: list[Account], store: Store, seed: int
) -> None:
    with ExitStack() as open_clients:
        clients = [open_clients.enter_context(LabelStudio(owner.url, one.token.get_secret_value())) for one in people]
        deeds = Deeds(owner, clients, f"deeds {seed}", random.Random(seed))
        for _ in range(8):
            deeds.some()
            sync_project(owner, store, deeds.project.id)
            assert in_the_store(store, deeds.project) == on_the_server(owner, deeds.project)
    gone = {one.annotation for one in store.lost(key(store, deeds.project))}
    assert gone | {number for numbers in deeds.here.values() for number in numbers} <= deeds.ever
    assert why(owner, store, deeds.project) == ""  # nothing is left to be found by reading everything
    before = in_the_store(store, deeds.project)
    assert why(owner, store, deeds.project, whole=True) == "requested"
    assert in_the_store(store, deeds.project) == before


def test_every_version_of_an_edited_skipped_and_deleted_annotation_is_kept(owner: LabelStudio, store: Store) -> None:
    project, tasks, ids = opened(owner, "versions", 2)
    number = owner.annotate(ids[0], ranking_result(tasks[0].shown), 3.0)
    sync_project(owner, store, project.id)
    for body in ({"result": ranking_result(tasks[0].shown[::-1])}, {"was_cancelled": True}):
        owner.patch(f"/api/annotations/{number}/", body)
        assert why(owner, store, project) == ""
    owner.delete(f"/api/annotations/{number}/")
    assert why(owner, store, project) == ""
    versions = store.history(key(store, project), number)
    assert [(one.skipped, one.deleted) for one in versions] == [
        (False, ""),
        (False, ""),
        (True, ""),
        (True, "annotation"),
    ]
    assert versions[0].raw["result"][0]["value"]["ranker"]["ranking"] == list(tasks[0].shown)
    assert {one.config_hash for one in versions} == {project.screen_hash} == {screen("ranking").hash}
    assert [one.uid for one in versions] == [tasks[0].uid] * 4


def test_a_task_that_is_deleted_in_the_interface_is_noticed_at_once(owner: LabelStudio, store: Store) -> None:
    project, tasks, ids = opened(owner, "task deleted", 3)
    for task, task_id in zip(tasks, ids, strict=True):
        owner.annotate(task_id, ranking_result(task.shown), 1.0)
    sync_project(owner, store, project.id)
    owner.delete_tasks(project.id, ids[:1])
    assert why(owner, store, project).startswith("the server has fewer tasks")
    (lost,) = store.lost(key(store, project))
    assert lost.deleted == "task" and lost.raw["result"] == ranking_result(tasks[0].shown)
    assert in_the_store(store, project) == on_the_server(owner, project)


def test_a_deleted_project_is_marked_and_what_was_judged_still_counts(
    owner: LabelStudio, store: Store, tmp_path: Path
) -> None:
    config = LabelingConfig(
        title="gone", rankings=RankingTasks(prompts=2, overlap=1), pairwise=PairwiseTasks(prompts=0)
    )
    sets = [response_set(number) for number in range(2)]
    collection = open_sets(owner, config, sets, tmp_path)
    (batch,) = collection.batches
    for task in batch.tasks:
        owner.annotate(batch.task_ids[task.uid], ranking_result(task.shown), 1.0)
    before = pull_collection(owner, collection, store)
    assert len(before.comparisons) == 12
    owner.delete(f"/api/projects/{batch.project.id}/")
    assert pull_collection(owner, collection, store) == before
    (synced,) = sync_collection(owner, collection, store)
    assert synced.project.deleted and len(store.lost(synced.project.project)) == 2
    with pytest.raises(UnexpectedAnswer, match=r"has no project .* run the same command again"):
        pull_collection(owner, collection)
    again = open_sets(owner, config, sets, tmp_path)
    assert again.batches[0].project.id != batch.project.id
    assert pull_collection(owner, again, store).judgements == 0
    assert any(one.project.number == again.batches[0].project.id for one in sync(owner, store).synced)


def test_an_annotator_who_is_deleted_is_still_known_by_the_store(owner: LabelStudio, store: Store) -> None:
    account = ensure_account(owner, "rosa@sync.local", "password of rosa")
    project, tasks, ids = opened(owner, "annotator deleted", 1)
    with LabelStudio(owner.url, account.token.get_secret_value()) as rosa:
        number = rosa.annotate(ids[0], ranking_result(tasks[0].shown), 1.0)
        sync_project(owner, store, project.id)
        owner.delete(f"/api/users/{account.id}/")
        with pytest.raises(BadCredentials):
            rosa.whoami()
    sync_project(owner, store, project.id, whole=True)
    (row,) = store.current(key(store, project))
    assert on_the_server(owner, project)[ids[0]][number][1] is None
    assert [raw["completed_by"] for raw in row["annotations"]] == [account.id]


def test_an_edited_screen_is_seen_and_every_version_knows_its_own(owner: LabelStudio, store: Store) -> None:
    project, tasks, ids = opened(owner, "screen edited", 2)
    one = owner.annotate(ids[0], ranking_result(tasks[0].shown), 1.0)
    sync_project(owner, store, project.id)
    before, view, after = owner.project(project.id)["label_config"].rpartition("</View>")
    owner.patch(f"/api/projects/{project.id}/", {"label_config": f'{before}<Header value="Hello"/>{view}{after}'})
    two = owner.annotate(ids[1], ranking_result(tasks[1].shown), 1.0)
    done = sync_project(owner, store, project.id)
    assert done is not None and done.config_changed and done.project.config_hash != project.screen_hash
    hashes = [store.history(key(store, project), number)[-1].config_hash for number in (one, two)]
    assert hashes == [project.screen_hash, done.project.config_hash]
    again = sync_project(owner, store, project.id)
    assert again is not None and not again.config_changed


def test_a_late_change_with_an_older_time_is_found(owner: LabelStudio, store: Store, database: Path) -> None:
    project, tasks, ids = opened(owner, "late", 2)
    for task, task_id in zip(tasks, ids, strict=True):
        owner.annotate(task_id, ranking_result(task.shown), 1.0)
    sync_project(owner, store, project.id)
    newest = store.syncs(key(store, project))[-1].newest
    (number,) = in_the_store(store, project)[ids[0]]
    owner.patch(f"/api/annotations/{number}/", {"result": ranking_result(tasks[0].shown[::-1])})
    earlier = stamp(newest - timedelta(seconds=40)).replace("T", " ").rstrip("Z")
    change(database, "UPDATE task SET updated_at = ? WHERE id = ?", earlier, ids[0])
    assert why(owner, store, project) == ""
    assert in_the_store(store, project) == on_the_server(owner, project)


def test_a_time_in_the_future_does_not_hide_what_comes_after(owner: LabelStudio, store: Store, database: Path) -> None:
    project, tasks, ids = opened(owner, "future", 2)
    numbers = [owner.annotate(task_id, ranking_result(task.shown), 1.0) for task, task_id in zip(tasks, ids)]  # noqa: B905
    change(database, "UPDATE task SET updated_at = '2999-01-01 00:00:00' WHERE id = ?", ids[0])
    sync_project(owner, store, project.id)
    owner.patch(f"/api/annotations/{numbers[1]}/", {"result": ranking_result(tasks[1].shown[::-1])})
    assert why(owner, store, project) == ""
    assert in_the_store(store, project) == on_the_server(owner, project)


@pytest.fixture
def faulty(owner: LabelStudio) -> Iterator[tuple[LabelStudio, Faults]]:
    with (
        proxy(owner.url) as (url, faults),
        LabelStudio(url, TOKEN, timeout_seconds=0.5, attempts=2, backoff_seconds=0.01) as client,
    ):
        yield client, faults


def patiently(client: LabelStudio) -> LabelStudio:
    """The same server, with time for a slow answer."""
    return LabelStudio(client.url, TOKEN, timeout_seconds=60.0)


def test_a_clock_that_was_put_back_makes_the_next_reading_a_whole_one(
    faulty: tuple[LabelStudio, Faults], store: Store, owner: LabelStudio
) -> None:
    (impatient, faults), (project, tasks, ids) = faulty, opened(owner, "clock", 2)
    with patiently(impatient) as client:
        faults.clock = timedelta(hours=2)
        assert why(client, store, project) == "first sync"
        assert why(client, store, project) == ""
        faults.clock = timedelta()
        owner.annotate(ids[0], ranking_result(tasks[0].shown), 1.0)
        assert why(client, store, project).startswith("the server's clock was set back")
        assert why(client, store, project) == ""
        faults.clock = timedelta(hours=25)
        assert why(client, store, project) == "the last full read is a day old"
        assert in_the_store(store, project) == on_the_server(owner, project)
    assert why(owner, store, project) != ""  # at another address: not as if it were another project
    assert len(store.projects()) == 1


def test_what_was_read_long_enough_after_it_happened_is_not_read_again(
    faulty: tuple[LabelStudio, Faults], store: Store, owner: LabelStudio
) -> None:
    (impatient, faults), (project, _, _) = faulty, opened(owner, "settled", 3)
    with patiently(impatient) as client:
        reads = []
        for minutes in (0, 0, 5, 10):
            faults.clock = timedelta(minutes=minutes)
            done = sync_project(client, store, project.id)
            assert done is not None
            reads.append(done.tasks_read)
    assert reads == [3, 3, 3, 0]


def test_a_server_that_fails_or_hangs_leaves_the_store_as_it_was(
    faulty: tuple[LabelStudio, Faults], store: Store, owner: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    (impatient, faults), (project, _, _) = faulty, opened(owner, "faults", 5)
    monkeypatch.setattr(client_module, "FULL_PAGE_SIZE", 2)
    for through in (0, 1, 2, 3):
        faults.let_through, faults.failing = through, 99
        with (
            LabelStudio(impatient.url, TOKEN, attempts=2, backoff_seconds=0.01) as client,
            pytest.raises(ServerUnavailable, match=r"returned 500.*its log says why"),
        ):
            sync_project(client, store, project.id)
    faults.let_through, faults.failing, faults.silent = 0, 0, 2
    with pytest.raises(ServerUnavailable, match="timed out"):
        sync_project(impatient, store, project.id)
    assert not store.projects()
    faults.failing = 1
    with patiently(impatient) as client:
        assert why(client, store, project) == "first sync"
    assert in_the_store(store, project) == on_the_server(owner, project)


def test_a_token_that_has_expired_changes_nothing(owner: LabelStudio, people: list[Account], store: Store) -> None:
    project, _, _ = opened(owner, "expired", 1)
    account = ensure_account(owner, "sam@sync.local", "password of sam")
    with LabelStudio(owner.url, account.token.get_secret_value()) as sam:
        sync_project(sam, store, project.id)
        sam.post("/api/current-user/reset-token/", {})
        with pytest.raises(BadCredentials, match="read the token on the server's Account page"):
            sync_project(sam, store, project.id)
    assert not store.projects()[0].deleted and len(store.syncs(key(store, project))) == 1


def sync_with_others(url: str, path: Path, number: int, together: threading.Barrier) -> None:
    with LabelStudio(url, TOKEN) as mine, closing(Store(path)) as other:
        together.wait(300)
        sync_project(mine, other, number)


def test_two_syncs_at_once_store_everything_once(owner: LabelStudio, store: Store) -> None:
    project, tasks, ids = opened(owner, "two syncs", 10)
    for task, task_id in zip(tasks, ids, strict=True):
        owner.annotate(task_id, ranking_result(task.shown), 1.0)

    told = (owner.url, store.path, project.id, SPAWN.Barrier(4))
    processes = [SPAWN.Process(target=sync_with_others, args=told) for _ in "ab"]
    workers = [*processes, *(threading.Thread(target=sync_with_others, args=told) for _ in "ab")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert in_the_store(store, project) == on_the_server(owner, project)
    assert versions(store, project) == {1}
    assert len(store.projects()) == 1 and len(store.syncs(key(store, project))) == 4


def kill_at_random(work: Callable[[], None], longest_seconds: float, rng: random.Random) -> None:
    """Run `work` in a process that is killed at a random moment."""
    process = FORK.Process(target=work)
    process.start()
    time.sleep(rng.uniform(0.0, longest_seconds))
    process.kill()
    process.join()


def test_a_push_that_is_killed_and_repeated_stores_every_task_once(
    owner: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "IMPORT_BATCH", 25)
    project, tasks = open_project(owner, "ranking", "killed push", 2), tasks_for(range(1000))

    def work() -> None:
        with LabelStudio(owner.url, TOKEN) as mine:
            push(mine, project, tasks)

    rng, longest_seconds, half_way = random.Random(0), 0.4, 0
    for _ in range(20):  # at the pace of the machine: not before the first batch for ever, and not after the last one
        kill_at_random(work, longest_seconds, rng)
        half_way = owner.project(project.id)["task_number"]
        longest_seconds *= 1.5 if half_way == 0 else 0.5 if half_way > 500 else 1
    time.sleep(0.5)  # a batch that the server was still storing when the last process was killed
    ids = push(owner, project, tasks).ids
    rows = owner.tasks(project.id, "id", "data")
    assert sorted(row["data"]["uid"] for row in rows) == sorted(task.uid for task in tasks)
    assert {row["data"]["uid"]: row["id"] for row in rows} == dict(ids)
    assert 0 < half_way < 1000


def test_copies_of_a_task_go_unless_somebody_judged_them(owner: LabelStudio) -> None:
    project, tasks, ids = opened(owner, "copies", 3)
    again = owner.import_tasks(project.id, [{"data": task.data} for task in tasks[:2]])
    owner.annotate(again[1], ranking_result(tasks[1].shown), 1.0)
    assert stored(owner, project) == {tasks[0].uid: ids[0], tasks[1].uid: again[1], tasks[2].uid: ids[2]}
    assert {row["id"] for row in owner.tasks(project.id, "id")} == {ids[0], again[1], ids[2]}


def test_a_push_onto_a_server_that_fails_goes_on_where_it_was(
    faulty: tuple[LabelStudio, Faults], owner: LabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "IMPORT_BATCH", 10)
    (impatient, faults), project = faulty, open_project(owner, "ranking", "failing push", 2)
    tasks = tasks_for(range(40))
    with patiently(impatient) as client:
        faults.let_through, faults.failing = 3, 99  # two batches get through
        with pytest.raises(ServerUnavailable):
            push(client, project, tasks)
        assert 20 <= owner.project(project.id)["task_number"] < 40
        faults.let_through, faults.failing = 1, 1  # the batch is stored, although the answer is an error
        pushed = push(client, project, tasks)
    assert len(owner.tasks(project.id, "id")) == 40 == len(pushed.ids) and not pushed.rejected


def test_a_sync_that_is_killed_leaves_a_sound_store(owner: LabelStudio, store: Store) -> None:
    project, tasks, ids = opened(owner, "killed sync", 30)
    for task, task_id in zip(tasks[:5], ids, strict=False):
        owner.annotate(task_id, ranking_result(task.shown), 1.0)

    def work() -> None:
        with LabelStudio(owner.url, TOKEN) as mine:
            sync_project(mine, Store(store.path), project.id, whole=True)

    rng = random.Random(0)
    for _ in range(10):
        kill_at_random(work, 0.4, rng)
    assert store.path is not None
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    sync_project(owner, store, project.id)
    assert in_the_store(store, project) == on_the_server(owner, project)
    assert versions(store, project) == {1}


def test_our_own_clock_is_never_looked_at() -> None:
    for name in ("store/sync", "store/store", "store/versions", "store/schema", "reports/status"):
        text = (Path(client_module.__file__).parents[1] / f"{name}.py").read_text(encoding="utf-8")
        assert ".now(" not in text and "utcnow" not in text and "time.time" not in text
