"""Keeping the store like the server: incremental readings, a whole one now and then, and nothing lost either way.

An incremental sync reads the tasks that changed after a cursor. All times are the server's own: `updated_at` of its
tasks, and the `Date` of its answers; the clock of this machine is never looked at. With N_k the newest change that sync
k saw and D_k its date, the next cursor is

    C = max(N_k − overlap, max {N_j : D_j ≤ D_k − overlap}),    N_k ≤ D_k + 1 s.

A change may carry an older time than one that was seen before it: it was stored late, or by a host of the server whose
clock is behind. So the last `overlap` before the newest change is read again, until that long has passed since it was
first seen: from then on all that is older has been read. Only differences of dates count, so a proxy whose clock is off
does no harm. A server whose clock was put back is read whole.

What was deleted with a task or by an action in bulk leaves no changed task behind. But the numbers of tasks and
annotations tell: after an incremental sync the store has what the server has, and perhaps more; if more, it is read
whole.
"""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from alignment.records import Record
from labeling.errors import RequestRefused, UnexpectedAnswer
from labeling.locks import exclusive_lock
from labeling.names import SIGNATURE, config_hash
from labeling.server.client import LabelStudio
from labeling.store.store import Store
from labeling.store.versions import Changes, SeenProject, Sync, moment

OVERLAP = timedelta(seconds=60)
WHOLE_EVERY = timedelta(hours=24)
BACKWARDS = timedelta(seconds=2)  # several hosts behind one address may differ by this much without a clock put back
DATE_STEP = timedelta(seconds=1)  # a Date has whole seconds
EPOCH = datetime.fromtimestamp(0, UTC)
Counts = tuple[int, int]


class Synced(Record):
    """What a sync did. `why` says why the project was read whole, "" for an incremental sync."""

    project: SeenProject
    why: str = ""
    tasks_read: int = 0
    changes: Changes = Changes()
    config_changed: bool = False


def sync(client: LabelStudio, store: Store, only: Collection[int] = (), *, whole: bool = False) -> list[Synced]:
    """Bring the store up to date with every project of ours on the server, and with those that were deleted there.

    With `only` just with the projects of these numbers, whoever made them.
    """
    known = {one.number for one in store.projects() if one.url == client.url and not one.deleted}
    shown = {int(raw["id"]): raw for raw in client.projects()}
    ours = {number for number, raw in shown.items() if str(raw["description"]).startswith(SIGNATURE)}
    found: list[Synced | None] = []
    for number in sorted(only or known | ours):
        try:
            found.append(sync_project(client, store, number, shown.get(number), whole=whole))
        except RequestRefused as error:
            if error.status != 404:
                raise
            found.append(sync_project(client, store, number, whole=whole))  # it was deleted after it was shown
    return [one for one in found if one is not None]


def sync_project(
    client: LabelStudio, store: Store, number: int, shown: dict[str, Any] | None = None, *, whole: bool = False
) -> Synced | None:
    """Bring the store up to date with one project; None when neither the server nor the store knows it.

    `shown` is the project as the server has just answered; without it the server is asked.

    Two syncs at once wait for each other. What is read is stored in one transaction, so a sync that is killed has
    done nothing. Raises ServerUnavailable and BadCredentials with the store as it was.
    """
    with exclusive_lock(f"sync {store.path or id(store)} {client.url} {number}"):
        raw = shown or _fetch_project(client, number)
        before = store.project(number, client.url)
        if before is not None and not before.deleted and (raw is None or _key(raw) != before.project):
            gone = store.record_deleted(before, _server_time(client))
            if raw is None:
                return Synced(project=before.model_copy(update={"deleted": True}), changes=gone)
        if raw is None:
            return None if before is None else Synced(project=before)
        return _read_project(client, store, raw, whole)


def _fetch_project(client: LabelStudio, number: int) -> dict[str, Any] | None:
    """The project, None when the server has none of this number."""
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
        raise UnexpectedAnswer(f"{client.url} answers without a Date: let the proxy before Label Studio pass it on")
    return client.server_time


def _counts(raw: dict[str, Any]) -> Counts:
    """Tasks, and annotations with skips."""
    return int(raw["task_number"]), int(raw["total_annotations_number"]) + int(raw["skipped_annotations_number"])


def _read_project(client: LabelStudio, store: Store, raw: dict[str, Any], whole: bool) -> Synced:
    project, date = _seen_project(client, raw), _server_time(client)
    configs = [one.config_hash for one in store.projects() if one.project == project.project]
    config_changed = bool(configs) and configs[0] != project.config_hash
    past = store.syncs(project.project)
    why = _reason_for_whole(past, date, asked=whole)
    tasks_read, changes = _store_reading(client, store, project, past, date, bool(why))
    if not why and not _counts_agree(client, store.counts(project.project), project.number, _counts(raw)):
        why, past = "the server has fewer tasks or annotations than the store", store.syncs(project.project)
        more_read, more = _store_reading(client, store, project, past, _server_time(client), True)
        tasks_read += more_read
        changes = Changes(
            added=changes.added + more.added,
            changed=changes.changed + more.changed,
            deleted=changes.deleted + more.deleted,
        )
    return Synced(project=project, why=why, tasks_read=tasks_read, changes=changes, config_changed=config_changed)


def _reason_for_whole(past: list[Sync], date: datetime, *, asked: bool) -> str:
    """Why the project is to be read whole, "" when it is not."""
    if not past:
        return "it was never read before"
    if asked:
        return "asked for"
    if date < past[-1].seen_at - BACKWARDS:
        return f"the server's clock was put back, from {past[-1].seen_at:%Y-%m-%d %H:%M:%S} to {date:%H:%M:%S}"
    last = next(one.seen_at for one in reversed(past) if one.whole)
    return "the last whole reading is a day old" if date - last >= WHOLE_EVERY else ""


def _store_reading(
    client: LabelStudio, store: Store, project: SeenProject, past: list[Sync], date: datetime, whole: bool
) -> tuple[int, Changes]:
    """Read, store, and set the cursor for the next time; return the number of tasks read and what had changed."""
    after = None if whole else past[-1].cursor
    rows = [_validated(row) for row in client.tasks_with_annotations(project.number, after)]
    changed = max((moment(row["updated_at"]) for row in rows), default=EPOCH)
    newest = min(max(changed, EPOCH if whole or not past else past[-1].newest), date + DATE_STEP)
    done = Sync(
        seen_at=date, whole=whole, newest=newest, cursor=_cursor(past, newest, date, whole), tasks_read=len(rows)
    )
    return len(rows), store.record(project, rows, done)


def _cursor(past: list[Sync], newest: datetime, date: datetime, whole: bool) -> datetime:
    """Up to where all changes have been read for sure; see the formula above."""
    settled = [one.newest for one in past if one.seen_at <= date - OVERLAP]
    before = [] if whole or not past else [past[-1].cursor]
    return max([newest - OVERLAP, *before, *settled])


def _counts_agree(client: LabelStudio, ours: Counts, number: int, earlier: Counts) -> bool:
    """Whether the store has as many as the server, which may have changed while it was read."""
    later = earlier if ours == earlier else _counts(client.project(number))
    return all(min(a, b) <= n <= max(a, b) for n, a, b in zip(ours, earlier, later, strict=True))


def _validated(row: dict[str, Any]) -> dict[str, Any]:
    """The row, if it has what the store needs. Raises UnexpectedAnswer."""
    try:
        parts: Iterator[Any] = iter([row, *row["annotations"]])
        if all(isinstance(part["id"], int) and moment(part["updated_at"]) and "data" in row for part in parts):
            return row
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswer(f"a task that cannot be read ({error!r}): {str(row)[:300]}") from error
    raise UnexpectedAnswer(f"a task that cannot be read: {str(row)[:300]}")
