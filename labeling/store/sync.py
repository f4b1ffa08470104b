"""Synchronisation of the store with Label Studio: incremental reads, and a full read at least once a day.

An incremental sync reads the tasks that changed after a cursor. All times are the server's: `updated_at` of its tasks,
and the `Date` header of its responses; the local clock is not used. With N_k the newest change that sync k saw and D_k
its date, the next cursor is

    C = max(N_k − overlap, max {N_j : D_j ≤ D_k − overlap}),    N_k ≤ D_k + 1 s.

Changes may become visible out of order: a change can be committed late, or by a host whose clock is behind. So the
`overlap` before the newest change is read again until that much time has passed since it was first seen; by then
everything older has been read. Only differences of dates matter, so a proxy with a wrong clock is harmless. If the
server's clock was set back, the project is read in full.

Deleted tasks and bulk deletions leave no changed task behind. The counts of tasks and annotations reveal them: after an
incremental sync the store has everything that the server has; if it has more, the project is read in full.

A task or annotation on which the server fails, or that is too large, is set aside and named; the store keeps the
versions of it that it has. A project that cannot be read stops no other.
"""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from alignment.records import Record, Rejected
from labeling.errors import RequestRefused, ServerFault, UnexpectedAnswer, UnreadableAnswer
from labeling.locks import exclusive_lock
from labeling.names import SIGNATURE, altered_settings, config_hash
from labeling.server.client import LabelStudio
from labeling.set_aside import SET_ASIDE, bounded, refusal
from labeling.store.store import Store
from labeling.store.versions import Changes, SeenProject, Sync, moment

OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(hours=24)
LACKING_EVERY = timedelta(minutes=10)
BACKWARDS = timedelta(seconds=2)  # clock skew allowed between hosts behind one address
DATE_STEP = timedelta(seconds=1)  # resolution of the Date header
LONGEST_TASK = 20_000_000  # characters
EPOCH = datetime.fromtimestamp(0, UTC)
FAULTS = (ServerFault, RequestRefused, UnexpectedAnswer)  # of one project: the server answers
Counts = tuple[int, int]


class Synced(Record):
    """The result of a sync. `why` is the reason for a full read, "" for an incremental sync.

    `unreadable` are tasks that could not be read, and `set_aside` annotations, with the reason, by id; the store keeps
    what it has. `settings` are settings on the server that differ from those that the project was created with.
    """

    project: SeenProject
    why: str = ""
    tasks_read: int = 0
    changes: Changes = Changes()
    config_changed: bool = False
    unreadable: dict[int, str] = Field(default_factory=dict)
    set_aside: dict[int, str] = Field(default_factory=dict)
    settings: tuple[str, ...] = ()

    @property
    def rejected(self) -> list[Rejected]:
        """The tasks that could not be read, as rejected rows."""
        place = f"label-studio/project/{self.project.number}/task"
        return [Rejected(file=f"{place}/{task}", line=0, reason=why) for task, why in self.unreadable.items()]


class SyncReport(Record):
    """A sync of all projects: sentences on those that could not be read, and on those of others with our signature."""

    synced: tuple[Synced, ...]
    unread: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """The projects that were not synchronised, each with the reason."""
        return (*self.unread, *self.foreign)


def sync(client: LabelStudio, store: Store, only: Collection[int] = (), *, whole: bool = False) -> SyncReport:
    """Bring the store up to date with all projects of ours on the server, including those deleted there.

    Ours are those that the store knows, and those with our signature that the client's account created; `only`
    restricts this to the projects with these numbers, whoever created them. A project that cannot be read does not stop
    the others. Raises ServerUnavailable and BadCredentials.
    """
    stored = {project.number for project in store.projects() if project.url == client.url and not project.deleted}
    listed, unread = _listed_projects(client)
    account = client.whoami()["id"]
    ours: set[int] = set()
    foreign: dict[int, str] = {}
    for number, raw in listed.items():
        if not str(raw["description"]).startswith(SIGNATURE) or number in stored or number in only:
            continue
        if _creator(raw) == account:
            ours.add(number)
        else:
            foreign[number] = f"has our signature, but account {_creator(raw)} created it: it is not followed"
    synced: list[Synced] = []
    for number in sorted(only or stored | ours):
        try:
            result = _sync_listed(client, store, number, listed.get(number), whole)
        except FAULTS as error:
            client.whoami()  # raises if the server fails on everything
            unread[number] = f"was not read: {error}"
        else:
            synced += [] if result is None else [result]
    return SyncReport(synced=tuple(synced), unread=_named(unread, only), foreign=_named(foreign, only))


def _named(problems: dict[int, str], only: Collection[int]) -> tuple[str, ...]:
    """The problems of projects as sentences, of those in `only` if it has any."""
    return tuple(f"project {n} {text}" for n, text in sorted(problems.items()) if not only or n in only)


def _listed_projects(client: LabelStudio) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """The projects of the server by number, and the problems of those that cannot be read."""
    try:
        return {int(raw["id"]): raw for raw in client.projects()}, {}
    except (ServerFault, UnreadableAnswer):
        numbers = [int(raw["id"]) for raw in client.projects("id")]
    listed: dict[int, dict[str, Any]] = {}
    problems: dict[int, str] = {}
    for number in numbers:
        try:
            raw = _fetch_project(client, number)
        except FAULTS as error:
            problems[number] = f"was not read: {error}"
        else:
            listed |= {} if raw is None else {number: raw}
    return listed, problems


def _creator(raw: dict[str, Any]) -> object:
    """The id of the account that created a project."""
    person = raw.get("created_by")
    return person.get("id") if isinstance(person, dict) else person


def _sync_listed(
    client: LabelStudio, store: Store, number: int, listed: dict[str, Any] | None, whole: bool
) -> Synced | None:
    """Sync a project that may have been deleted after it was listed."""
    try:
        return sync_project(client, store, number, listed, whole=whole)
    except RequestRefused as error:
        if error.status != 404:
            raise
        return sync_project(client, store, number, whole=whole)


def sync_project(
    client: LabelStudio, store: Store, number: int, listed: dict[str, Any] | None = None, *, whole: bool = False
) -> Synced | None:
    """Bring the store up to date with one project; None if neither the server nor the store knows it.

    `listed` is the project as just returned by the server; without it the project is requested.

    Concurrent syncs wait for each other. All rows are stored in one transaction, so a killed sync changes nothing.
    Raises ServerUnavailable and BadCredentials; the store is then unchanged.
    """
    with exclusive_lock(f"sync {store.path or id(store)} {client.url} {number}"):
        raw = listed or _fetch_project(client, number)
        before = store.project(number, client.url)
        if before is not None and not before.deleted and (raw is None or _key(raw) != before.project):
            changes = store.record_deleted(before, _server_time(client))
            if raw is None:
                return Synced(project=before.model_copy(update={"deleted": True}), changes=changes)
        if raw is None:
            return None if before is None else Synced(project=before)
        return _read_project(client, store, raw, whole)


def _fetch_project(client: LabelStudio, number: int) -> dict[str, Any] | None:
    """The project, None if the server has no project with this number."""
    try:
        return client.project(number)
    except RequestRefused as error:
        if error.status == 404:
            return None
        raise


def _key(raw: dict[str, Any]) -> str:
    return f"{raw['id']}@{raw['created_at']}"


def _seen_project(client: LabelStudio, raw: dict[str, Any]) -> SeenProject:
    config = str(raw["label_config"])
    return SeenProject(
        project=_key(raw),
        number=int(raw["id"]),
        url=client.url,
        title=str(raw["title"]),
        overlap=int(raw["maximum_annotations"]),
        config_hash=config_hash(config),
        config=config,
    )


def _server_time(client: LabelStudio) -> datetime:
    if client.server_time is None:
        raise UnexpectedAnswer(
            f"{client.url} responds without a Date header: configure the proxy in front of Label Studio to forward it"
        )
    return client.server_time


def _counts(raw: dict[str, Any]) -> Counts:
    """(Tasks, annotations including skips) according to the server."""
    return int(raw["task_number"]), int(raw["total_annotations_number"]) + int(raw["skipped_annotations_number"])


def _read_project(client: LabelStudio, store: Store, raw: dict[str, Any], whole: bool) -> Synced:
    project, date = _seen_project(client, raw), _server_time(client)
    configs = [known.config_hash for known in store.projects() if known.project == project.project]
    config_changed = bool(configs) and configs[0] != project.config_hash
    past = store.syncs(project.project)
    why = _reason_for_whole(past, date, asked=whole)
    unreadable: dict[int, str] = {}
    aside: dict[int, str] = {}
    tasks_read, changes = _store_reading(client, store, project, past, date, bool(why), unreadable, aside)
    if not why and (why := _difference(client, store, project, _counts(raw), date)):
        past = store.syncs(project.project)
        more_read, more = _store_reading(client, store, project, past, _server_time(client), True, unreadable, aside)
        tasks_read += more_read
        changes = Changes(
            added=changes.added + more.added,
            changed=changes.changed + more.changed,
            deleted=changes.deleted + more.deleted,
        )
    return Synced(
        project=project,
        why=why,
        tasks_read=tasks_read,
        changes=changes,
        config_changed=config_changed,
        unreadable=unreadable,
        set_aside=aside,
        settings=altered_settings(raw),
    )


def _reason_for_whole(past: list[Sync], date: datetime, *, asked: bool) -> str:
    """The reason for a full read, "" for an incremental one."""
    if not past:
        return "first sync"
    if asked:
        return "requested"
    if date < past[-1].seen_at - BACKWARDS:
        return f"the server's clock was set back, from {past[-1].seen_at:%Y-%m-%d %H:%M:%S} to {date:%H:%M:%S}"
    last = next(sync.seen_at for sync in reversed(past) if sync.whole)
    return "the last full read is a day old" if date - last >= WHOLE_EVERY else ""


def _store_reading(
    client: LabelStudio,
    store: Store,
    project: SeenProject,
    past: list[Sync],
    date: datetime,
    whole: bool,
    unreadable: dict[int, str],
    aside: dict[int, str],
) -> tuple[int, Changes]:
    """Read and store the tasks, and set the next cursor; return the number of tasks read and the changes.

    Tasks that cannot be read are added to `unreadable`, annotations to `aside`.
    """
    after = None if whole else past[-1].cursor
    rows = []
    for row in client.tasks_with_annotations(project.number, after, unreadable):
        if problem := _malformed(row):
            unreadable[_task_id(row)] = problem
            continue
        small = [bounded(raw) for raw in row["annotations"]]
        aside |= {raw["id"]: f"task {row['id']}: {raw[SET_ASIDE]}" for raw in small if SET_ASIDE in raw}
        rows.append(row | {"annotations": small})
    changed = max((moment(row["updated_at"]) for row in rows), default=EPOCH)
    newest = min(max(changed, EPOCH if whole or not past else past[-1].newest), date + DATE_STEP)
    sync = Sync(
        seen_at=date, whole=whole, newest=newest, cursor=_cursor(past, newest, date, whole), tasks_read=len(rows)
    )
    return len(rows), store.record(project, rows, sync, unreadable)


def _cursor(past: list[Sync], newest: datetime, date: datetime, whole: bool) -> datetime:
    """The time up to which all changes have certainly been read; see the formula above."""
    settled = [sync.newest for sync in past if sync.seen_at <= date - OVERLAP]
    previous = [] if whole or not past else [past[-1].cursor]
    return max([newest - OVERLAP, *previous, *settled])


def _difference(client: LabelStudio, store: Store, project: SeenProject, earlier: Counts, date: datetime) -> str:
    """Why the counts of the server and the store require a full read, "" if they do not.

    The server's may have changed during the read. What the server cannot send is missing in the store for good, so that
    a full read for it is due only every LACKING_EVERY.
    """
    ours = store.counts(project.project)
    later = earlier if ours == earlier else _counts(client.project(project.number))
    if all(min(a, b) <= n <= max(a, b) for n, a, b in zip(ours, earlier, later, strict=True)):
        return ""
    if any(n > max(a, b) for n, a, b in zip(ours, earlier, later, strict=True)):
        return "the server has fewer tasks or annotations than the store"
    last = next(sync.seen_at for sync in reversed(store.syncs(project.project)) if sync.whole)
    return "the server has more tasks or annotations than the store" if date - last >= LACKING_EVERY else ""


def _task_id(row: dict[str, Any]) -> int:
    """The id of a task. Raises UnexpectedAnswer for a row without one."""
    if isinstance(number := row.get("id"), int):
        return number
    raise UnexpectedAnswer(f"malformed task: {str(row)[:300]}")


def _malformed(row: dict[str, Any]) -> str:
    """The problem of a row that does not have the fields that the store needs; "" if it has."""
    try:
        parts: Iterator[Any] = iter([row, *row["annotations"]])
        if all(isinstance(part["id"], int) and moment(part["updated_at"]) and "data" in row for part in parts):
            return refusal(row["data"], LONGEST_TASK)
    except (KeyError, TypeError, ValueError) as error:
        return f"malformed task ({error!r}): {str(row)[:300]}"
    return f"malformed task: {str(row)[:300]}"
