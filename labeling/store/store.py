"""An append-only store of annotations: every version of each one, kept outside Label Studio.

Label Studio overwrites edited annotations, drops deleted ones, and lets every account delete a project. This store
overwrites nothing: an edit adds a version, a deletion adds a tombstone that records what was deleted (the annotation,
its task, or the project), and database triggers refuse to change or delete a row.

    projects      settings and label config at each sync         current_tasks        views: newest versions,
    tasks         data shown to annotators                       current_annotations  without deleted rows
    annotations   raw JSON, annotator, time, label config hash   syncs                what was read, and when

The key of a project is its id with its creation time: projects of a server that was set up anew get other keys, and
a server that moved to another address keeps its keys. Times are UTC, by the server's clock.
"""

import json
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import DDL, Connection, Row, Table, func, insert, select
from sqlalchemy.exc import DatabaseError

from labeling.authors import Account, with_author
from labeling.errors import StoreError
from labeling.set_aside import SET_ASIDE
from labeling.store.schema import (
    FORMAT,
    annotations,
    check_tables,
    earlier_versions,
    engine,
    metadata,
    newest,
    projects,
    rules,
    syncs,
    tasks,
)
from labeling.store.versions import (
    ANNOTATION_DELETED,
    PRESENT,
    PROJECT_DELETED,
    TASK_DELETED,
    UNREAD_HASH,
    Changes,
    SeenProject,
    Sync,
    Version,
    annotation_values,
    moment,
    stamp,
    task_values,
)

EMPTY_SECONDS, EMPTY_CHECKS = 2.0, 20


class Store:
    """The store in the file `path`, created on first use; in memory without a path.

    Several processes may read and write concurrently; writers wait for each other. Raises StoreError for a file that is
    not an annotation store, or that cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = None if path is None else path.resolve()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_empty(path)
            if path.exists():
                check_tables(path)
        self._engine = engine(path)
        is_new = path is not None and not path.exists()
        try:
            self._prepare()
        except BaseException as error:
            if path is not None and is_new and path.exists() and not path.stat().st_size:
                path.unlink()  # of a store that could not be created: an empty file would be refused from now on
            if not isinstance(error, DatabaseError) or "disk is full" in str(error):
                raise
            raise StoreError(f"{path} cannot be used as an annotation store ({error.orig})") from error

    def _prepare(self) -> None:
        with self._writing() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            if version not in (0, FORMAT):
                raise StoreError(f"{self.path} has format {version}, this version supports {FORMAT}: update rlhf-flows")
            if version == 0:
                metadata.create_all(connection)
                for statement in rules():
                    connection.execute(DDL(statement))
                connection.exec_driver_sql(f"PRAGMA user_version={FORMAT}")

    def close(self) -> None:
        """Close the connections to the file."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """An exclusive write transaction."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    def projects(self) -> list[SeenProject]:
        """The newest version of each project, oldest project first, deleted ones included."""
        latest = select(func.max(projects.c.seq)).group_by(projects.c.project)
        with self._engine.connect() as connection:
            rows = connection.execute(select(projects).where(projects.c.seq.in_(latest)).order_by(projects.c.seq))
            return [_project(row) for row in rows]

    def project(self, number: int, url: str) -> SeenProject | None:
        """The project that was last seen under this number at this address."""
        query = select(projects).where(projects.c.number == number, projects.c.url == url)
        with self._engine.connect() as connection:
            row = connection.execute(query.order_by(projects.c.seq.desc()).limit(1)).first()
            return None if row is None else _project(row)

    def first_screen(self, project: str) -> str:
        """The hash of the label config with which a project was first seen."""
        query = select(projects.c.config_hash).where(projects.c.project == project)
        with self._engine.connect() as connection:
            return str(connection.execute(query.order_by(projects.c.seq).limit(1)).scalar_one())

    def syncs(self, project: str) -> list[Sync]:
        """All syncs of a project, the oldest first."""
        query = select(syncs).where(syncs.c.project == project).order_by(syncs.c.seq)
        with self._engine.connect() as connection:
            return [
                Sync(
                    seen_at=moment(row.seen_at),
                    whole=row.whole,
                    newest=moment(row.newest),
                    cursor=moment(row.cursor),
                    tasks_read=row.tasks_read,
                )
                for row in connection.execute(query)
            ]

    def counts(self, project: str) -> tuple[int, int]:
        """(Tasks, annotations with skips) that the server had at the last sync."""
        with self._engine.connect() as connection:
            task_count, annotation_count = (
                connection.execute(_count_query(table, project)).scalar_one() for table in (tasks, annotations)
            )
        return task_count, annotation_count

    def current(self, project: str, known: Container[Account] | None = None) -> list[dict[str, Any]]:
        """The tasks (`id`, `data`) with their `annotations`, newest versions, in the shape of an export.

        A deleted project keeps its last rows: its judgements were not withdrawn. `completed_by` also names annotators
        whose accounts were deleted on the server; `author` is there where the history names another one
        than the newest version does. `set_aside` is the reason why an annotation does not count: its author cannot be
        believed or is none of the accounts `known`, or it was not stored.
        """
        with self._engine.connect() as connection:
            task_rows = newest(connection, tasks, project).values()
            annotation_rows = newest(connection, annotations, project).values()
            earlier = earlier_versions(connection, project)
        rows = {
            row.task: {"id": row.task, "data": json.loads(row.data), "annotations": []}
            for row in task_rows
            if row.deleted in (PRESENT, PROJECT_DELETED)
        }
        for row in annotation_rows:
            if row.deleted in (PRESENT, PROJECT_DELETED) and row.task in rows:
                versions = [_raw(version) for version in (*earlier.get(row.annotation, ()), row)]
                rows[row.task]["annotations"].append(with_author(versions, known))
        return list(rows.values())

    def history(self, project: str, annotation: int) -> list[Version]:
        """All versions of an annotation, the oldest first."""
        matches = (annotations.c.project == project) & (annotations.c.annotation == annotation)
        with self._engine.connect() as connection:
            rows = connection.execute(select(annotations).where(matches).order_by(annotations.c.seq))
            return [_version(row) for row in rows]

    def lost(self, project: str) -> list[Version]:
        """The newest versions of annotations that were deleted on the server."""
        with self._engine.connect() as connection:
            rows = newest(connection, annotations, project).values()
        return [_version(row) for row in rows if row.deleted != PRESENT]

    def record(
        self,
        project: SeenProject,
        rows: Sequence[Mapping[str, Any]],
        sync: Sync,
        unreadable: Collection[int] = (),
    ) -> Changes:
        """Store what a sync read, in one transaction. `rows` are tasks with all their annotations; all tasks, if whole.

        Unchanged rows are not stored again. Missing rows get a tombstone: annotations that a task no longer has and, in
        a whole sync, tasks that are not among the rows; but not what belongs to the tasks `unreadable`. A stand-in is
        stored only for an annotation that no version was read of.
        """
        seen_at = stamp(sync.seen_at)
        ids = None if sync.whole else [int(row["id"]) for row in rows]
        with self._writing() as connection:
            _record_project(connection, project, seen_at)
            known_tasks = newest(connection, tasks, project.project, ids)
            known = newest(connection, annotations, project.project, ids)
            people = {number: row.annotator for number, row in known.items()}
            task_rows = {int(row["id"]): task_values(project, row, seen_at) for row in rows}
            annotation_rows = {
                int(raw["id"]): annotation_values(project, row, raw, seen_at, people.get(int(raw["id"])))
                for row in rows
                for raw in row["annotations"]
            }
            for number in _stand_ins(rows) & {number for number, row in known.items() if not row.deleted}:
                annotation_rows[number]["hash"] = known[number].hash  # the version that was read stays the newest one
            _add(connection, tasks, task_rows, known_tasks)
            added, changed = _add(connection, annotations, annotation_rows, known)
            known_tasks, known = (
                {number: row for number, row in versions.items() if row.task not in unreadable}
                for versions in (known_tasks, known)
            )
            _add_tombstones(connection, tasks, known_tasks, task_rows, seen_at, lambda _: TASK_DELETED)
            deleted = _add_tombstones(
                connection,
                annotations,
                known,
                annotation_rows,
                seen_at,
                lambda row: ANNOTATION_DELETED if row.task in task_rows else TASK_DELETED,
            )
            connection.execute(insert(syncs).values(project=project.project, **_sync_values(sync)))
        return Changes(added=added, changed=changed, deleted=deleted)

    def record_deleted(self, project: SeenProject, seen_at: datetime) -> Changes:
        """Mark a project with its tasks and annotations as deleted on the server. Its annotations are kept."""
        time = stamp(seen_at)
        with self._writing() as connection:
            _record_project(connection, project.model_copy(update={"deleted": True}), time)
            deleted = 0
            for table in (tasks, annotations):
                known = newest(connection, table, project.project)
                deleted = _add_tombstones(connection, table, known, {}, time, lambda _: PROJECT_DELETED)
        return Changes(deleted=deleted)


def _stand_ins(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """The ids of annotations that were not read, or are not stored."""
    return {int(raw["id"]) for row in rows for raw in row["annotations"] if SET_ASIDE in raw}


def _refuse_empty(path: Path) -> None:
    """Raise StoreError for a file without content, which a fault left: a store would look as if nothing was ever read.

    Another process that creates the store at this moment is waited for.
    """
    for _ in range(EMPTY_CHECKS):
        if not path.exists() or path.stat().st_size:
            return
        time.sleep(EMPTY_SECONDS / EMPTY_CHECKS)
    raise StoreError(
        f"{path} is empty, and no store is: if it had annotations, they were lost, so restore a backup into a new home "
        "(`rlhf restore`), or remove the file and `rlhf label sync`, which reads what Label Studio has now"
    )


def _project(row: Row[Any]) -> SeenProject:
    return SeenProject(**{name: getattr(row, name) for name in SeenProject.model_fields})


def _version(row: Row[Any]) -> Version:
    return Version(
        **{name: getattr(row, name) for name in Version.model_fields if not name.endswith("_at") and name != "raw"},
        raw=json.loads(row.raw),
        updated_at=moment(row.updated_at),
        seen_at=moment(row.seen_at),
    )


def _sync_values(sync: Sync) -> dict[str, Any]:
    times = {name: stamp(getattr(sync, name)) for name in ("seen_at", "newest", "cursor")}
    return sync.model_dump() | times


def _raw(row: Row[Any]) -> dict[str, Any]:
    """A version of an annotation, with its annotator also where the account was deleted on the server."""
    raw: dict[str, Any] = json.loads(row.raw)
    return raw if row.annotator is None else raw | {"completed_by": row.annotator}


def _count_query(table: Table, project: str) -> Any:
    """The query that counts a project's rows that are not deleted, without those that the server could not send."""
    column = table.c.task if table is tasks else table.c.annotation
    latest = select(func.max(table.c.seq)).where(table.c.project == project).group_by(column)
    return select(func.count()).where(table.c.seq.in_(latest), table.c.deleted == PRESENT, table.c.hash != UNREAD_HASH)


def _record_project(connection: Connection, project: SeenProject, seen_at: str) -> None:
    """Add a version of the project if it differs from the last one."""
    query = select(projects).where(projects.c.project == project.project).order_by(projects.c.seq.desc()).limit(1)
    previous = connection.execute(query).first()
    if previous is None or _project(previous) != project:
        connection.execute(insert(projects).values(seen_at=seen_at, **project.model_dump()))


def _add(
    connection: Connection, table: Table, read: Mapping[int, dict[str, Any]], known: Mapping[int, Row[Any]]
) -> tuple[int, int]:
    """Add new and changed rows; return the number of each."""
    new = [values for number, values in read.items() if number not in known or known[number].deleted]
    changed = [
        values
        for number, values in read.items()
        if number in known and not known[number].deleted and values["hash"] != known[number].hash
    ]
    if new or changed:
        connection.execute(insert(table), new + changed)
    return len(new), len(changed)


def _add_tombstones(
    connection: Connection,
    table: Table,
    known: Mapping[int, Row[Any]],
    read: Mapping[int, Any],
    seen_at: str,
    reason: Callable[[Row[Any]], str],
) -> int:
    """Add tombstones, copies of the last version, for rows that are no longer on the server."""
    tombstones = [
        {**row._mapping, "seen_at": seen_at, "deleted": reason(row)}
        for number, row in known.items()
        if number not in read and not row.deleted
    ]
    for values in tombstones:
        del values["seq"]
    if tombstones:
        connection.execute(insert(table), tombstones)
    return len(tombstones)
