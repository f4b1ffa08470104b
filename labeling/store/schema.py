"""Tables, views and append-only triggers of the annotation store."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Engine,
    ExceptionContext,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.pool import StaticPool

from labeling.errors import StoreError

BUSY_SECONDS = 60
CHUNK = 500

PRIMARY_CODE = 0xFF  # extended codes of SQLite hold the primary one in the last byte
FORMAT = 1
DAMAGED = (
    "is damaged, and nothing was written to it: restore a backup into a new home (`rlhf restore`), or move the file "
    "away and `rlhf label sync`, which reads what Label Studio has now, without edits and deletions of the past"
)
PROBLEMS = {
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: f"is not an annotation store, or {DAMAGED}",
    sqlite3.SQLITE_BUSY: f"is in use by another process for {BUSY_SECONDS} seconds: end it, or wait, and try again",
    sqlite3.SQLITE_READONLY: "cannot be written: change the owner or mode of the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: change the owner or mode of the file and its directory",
}

metadata = MetaData()
projects = Table(
    "projects",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("project", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("url", String, nullable=False),
    Column("title", String, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("config_hash", String, nullable=False),
    Column("config", String, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("projects_by_key", "project", "seq"),
    sqlite_autoincrement=True,
)
tasks = Table(
    "tasks",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("project", String, nullable=False),
    Column("task", Integer, nullable=False),
    Column("uid", String, nullable=False),
    Column("data", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("deleted", String, nullable=False),
    Index("tasks_by_id", "project", "task", "seq"),
    sqlite_autoincrement=True,
)
annotations = Table(
    "annotations",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("project", String, nullable=False),
    Column("annotation", Integer, nullable=False),
    Column("task", Integer, nullable=False),
    Column("uid", String, nullable=False),
    Column("annotator", Integer),
    Column("skipped", Boolean, nullable=False),
    Column("raw", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("config_hash", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("deleted", String, nullable=False),
    Index("annotations_by_id", "project", "annotation", "seq"),
    Index("annotations_by_task", "project", "task"),
    sqlite_autoincrement=True,
)
syncs = Table(
    "syncs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("project", String, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("whole", Boolean, nullable=False),
    Column("newest", String, nullable=False),
    Column("cursor", String, nullable=False),
    Column("tasks_read", Integer, nullable=False),
    Index("syncs_by_project", "project", "seq"),
    sqlite_autoincrement=True,
)
IDS = {tasks: tasks.c.task, annotations: annotations.c.annotation}


def rules() -> Iterator[str]:
    """SQL statements for the views and for the triggers that refuse updates and deletions."""
    for table, column in IDS.items():
        yield (
            f"CREATE VIEW current_{table.name} AS SELECT * FROM {table.name} WHERE deleted = '' AND seq IN "
            f"(SELECT MAX(seq) FROM {table.name} GROUP BY project, {column.name})"
        )
    for table in metadata.sorted_tables:
        for statement in ("UPDATE", "DELETE"):
            yield (
                f"CREATE TRIGGER no_{statement.lower()}_of_{table.name} BEFORE {statement} ON {table.name} "
                f"BEGIN SELECT RAISE(ABORT, 'the store only adds: {statement} is refused'); END"
            )


def engine(path: Path | None) -> Engine:
    """A SQLite engine, in memory without a path, with explicit transactions; writers wait for each other."""
    if path is None:
        sqlite = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        address = URL.create("sqlite", database=str(path))
        sqlite = create_engine(address, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(sqlite, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(sqlite, "handle_error")
    def explain(context: ExceptionContext) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & PRIMARY_CODE
        if path is not None and code in PROBLEMS:
            raise StoreError(f"{path} {PROBLEMS[code]} ({context.original_exception})")

    return sqlite


def check_tables(path: Path) -> None:
    """Raise StoreError for another program's SQLite file, or a store without its tables, before anything is written.

    A file that cannot be opened or read is left to the engine, which says why.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return
    if version == 0 and names:
        raise StoreError(
            f"{path} is a database of another program (with the table {min(names)[:100]!r}), and nothing was written "
            "to it: move it away, or choose another file for the annotations"
        )
    needed = {*metadata.tables, *(f"current_{table.name}" for table in IDS)}
    if version == FORMAT and (missing := sorted(needed - names)):
        raise StoreError(f"{path} has no table {missing[0]!r}: it is another program's, or {DAMAGED}")


def newest(
    connection: Connection, table: Table, project: str, task_ids: Sequence[int] | None = None
) -> dict[int, Row[Any]]:
    """The newest version of each task or annotation of a project, by id; with `task_ids` for those tasks only."""
    column = IDS[table]
    latest = select(func.max(table.c.seq)).where(table.c.project == project).group_by(column)
    parts = [None] if task_ids is None else [task_ids[i : i + CHUNK] for i in range(0, len(task_ids), CHUNK)]
    rows_by_id: dict[int, Row[Any]] = {}
    for part in parts:
        selected = latest if part is None else latest.where(table.c.task.in_(part))
        rows = connection.execute(select(table).where(table.c.seq.in_(selected)).order_by(column))
        rows_by_id |= {getattr(row, column.name): row for row in rows}
    return rows_by_id


def earlier_versions(connection: Connection, project: str) -> dict[int, list[Row[Any]]]:
    """All versions of each annotation of a project except the newest, by id, the oldest first."""
    latest = select(func.max(annotations.c.seq)).where(annotations.c.project == project)
    query = select(annotations).where(
        annotations.c.project == project, annotations.c.seq.not_in(latest.group_by(annotations.c.annotation))
    )
    versions: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(query.order_by(annotations.c.seq)):
        versions.setdefault(row.annotation, []).append(row)
    return versions
