"""Idempotent upload of tasks, which are identified by their uid."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from alignment.records import Record, Rejected
from labeling.errors import RequestRefused, ServerFault, TaskError
from labeling.locks import exclusive_lock
from labeling.names import uid_of
from labeling.server.client import LabelStudio, import_batches
from labeling.tasks.projects import Project
from labeling.tasks.tasks import Task

log = logging.getLogger(__name__)
PAYLOAD_STATUSES = (400, 413, 422)  # refusals of what was sent, not of who sent it
PAUSE_SECONDS = 1.0


class Pushed(Record):
    """The task id of each uid, and the tasks that the server does not take, with its reason."""

    ids: dict[str, int]
    rejected: tuple[Rejected, ...] = ()


def push(client: LabelStudio, project: Project, tasks: Sequence[Task]) -> Pushed:
    """Store the tasks that the project does not have yet.

    Label Studio does not detect duplicates, so the uids are read first, under a lock. After an interruption a second
    call stores the rest. A batch that the server was still storing at the interruption may then be stored twice; the
    number of tasks reveals this, and the newer copies are deleted.

    A task that the server cannot store stops no other. Raises RequestRefused if it stores none at all.
    """
    if any(task.kind != project.kind for task in tasks):
        raise TaskError(f"a {project.kind} project takes only {project.kind} tasks")
    with exclusive_lock(f"{client.url} project {project.id}"):
        known = stored(client, project)
        missing = {task.uid: task for task in tasks if task.uid not in known}
        refused: dict[str, RequestRefused] = {}
        for batch in import_batches([{"data": task.data} for task in missing.values()]):
            known |= _import(client, project, batch, refused)
        if refused and not known:
            raise next(iter(refused.values()))
        if client.project(project.id)["task_number"] != len(known):
            known |= stored(client, project)
    rejected = [
        Rejected(file=project.title, line=0, reason=f"task {uid}: {error}", row=missing[uid].model_dump())
        for uid, error in refused.items()
        if uid not in known
    ]
    if rejected:
        log.warning("%s takes %d tasks not; the first: %s", project.title, len(rejected), rejected[0].reason)
    return Pushed(ids={task.uid: known[task.uid] for task in tasks if task.uid in known}, rejected=tuple(rejected))


def _import(
    client: LabelStudio, project: Project, batch: list[dict[str, Any]], refused: dict[str, RequestRefused]
) -> dict[str, int]:
    """The ids of a batch by uid. A batch that is refused is halved, until the tasks that are at fault are alone."""
    uids = [str(task["data"]["uid"]) for task in batch]
    error: RequestRefused
    try:
        return dict(zip(uids, client.import_tasks(project.id, batch), strict=True))
    except RequestRefused as refusal:
        if refusal.status not in PAYLOAD_STATUSES:
            raise
        error = refusal
    except ServerFault as fault:
        client.whoami()  # raises if the server fails on everything: that is an outage
        path = f"{client.url}/api/projects/{project.id}/import"
        error = RequestRefused("POST", path, 500, fault.body or "it cannot store the task")
    if len(batch) == 1:
        if error.status == 500 and uids[0] not in refused:  # once more: the fault may have been a passing one
            refused[uids[0]] = error
            time.sleep(PAUSE_SECONDS)
            ids = _import(client, project, batch, refused)
            if ids:
                del refused[uids[0]]
            return ids
        refused[uids[0]] = error
        return {}
    middle = len(batch) // 2
    return _import(client, project, batch[:middle], refused) | _import(client, project, batch[middle:], refused)


def stored(client: LabelStudio, project: Project) -> dict[str, int]:
    """The uid and id of every task in the project; of copies, the one that was judged, else the oldest.

    Surplus copies without judgements are deleted.
    """
    by_uid = _copies(client, project)
    surplus = [task_id for copies in by_uid.values() for untouched, task_id in copies[1:] if untouched]
    if surplus:
        client.delete_tasks(project.id, surplus)
    return {uid: copies[0][1] for uid, copies in by_uid.items()}


def task_ids(client: LabelStudio, project: int) -> dict[str, int]:
    """The uid and id of every task of ours in a project; read-only."""
    rows = client.tasks(project, "id", "data")
    return {uid: int(row["id"]) for row in reversed(rows) if (uid := uid_of(row))}


def _copies(client: LabelStudio, project: Project) -> dict[str, list[tuple[bool, int]]]:
    """For every uid in the project its tasks as (not judged yet, id), judged ones first, then by age."""
    by_uid: dict[str, list[tuple[bool, int]]] = {}
    for row in client.tasks(project.id, "id", "data", "total_annotations", "cancelled_annotations"):
        uid, untouched = uid_of(row), not row["total_annotations"] + row["cancelled_annotations"]
        if uid:
            by_uid.setdefault(uid, []).append((untouched, int(row["id"])))
    return {uid: sorted(copies) for uid, copies in by_uid.items()}
