"""Idempotent upload of tasks, which are identified by their uid."""

from collections.abc import Mapping, Sequence

from labeling.errors import TaskError
from labeling.locks import exclusive_lock
from labeling.names import uid_of
from labeling.server.client import LabelStudio
from labeling.tasks.projects import Project
from labeling.tasks.tasks import Task


def push(client: LabelStudio, project: Project, tasks: Sequence[Task]) -> Mapping[str, int]:
    """Store the tasks that the project does not have yet; return the task id of each uid.

    Label Studio does not detect duplicates, so the uids are read first, under a lock. After an interruption a second
    call stores the rest. A batch that the server was still storing at the interruption may then be stored twice; the
    number of tasks reveals this, and the newer copies are deleted.
    """
    if any(task.kind != project.kind for task in tasks):
        raise TaskError(f"a {project.kind} project takes only {project.kind} tasks")
    with exclusive_lock(f"{client.url} project {project.id}"):
        known = stored(client, project)
        missing = [task for task in tasks if task.uid not in known]
        ids = client.import_tasks(project.id, [{"data": task.data} for task in missing])
        known |= {task.uid: task_id for task, task_id in zip(missing, ids, strict=True)}
        if client.project(project.id)["task_number"] != len(known):
            known |= stored(client, project)
    return {task.uid: known[task.uid] for task in tasks}


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
