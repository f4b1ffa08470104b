"""The SQLite files of the servers, looked at before a server starts on them."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flows.stack.processes import StackError
from flows.stack.services import TITLES, Name

BUSY_SECONDS = 5.0
BOOKKEEPING = {"alembic_version", "sqlite_sequence"}  # of any program; the first tables of a database that is begun


@dataclass(frozen=True)
class Database:
    """A server's database: its file in the home, and a table that no other server's has."""

    file: str
    table: str


DATABASES: dict[Name, Database] = {
    "prefect": Database("prefect/prefect.db", "flow_run"),
    "mlflow": Database("mlflow/mlflow.db", "experiments"),
    "label-studio": Database("label-studio/label_studio.sqlite3", "django_migrations"),
}
TABLES = {database.file: database.table for database in DATABASES.values()} | {"annotations.db": "annotations"}


def check_database(home: Path, name: Name) -> None:
    """Raise StackError for a server's database that is damaged, empty or another program's: the server would fail on
    it, start a new one, or write into it."""
    path = home / DATABASES[name].file
    problem = damage(path, DATABASES[name].table) if path.exists() else ""
    if problem:
        raise StackError(
            f"{path}, the database of {TITLES[name]}, {problem}: restore a backup into a new home (`rlhf restore`), or "
            "move the file away, and `rlhf up` starts the server without what was in it"
        )


def damage(path: Path, table: str = "") -> str:
    """What is wrong with a SQLite file; "" if it has content, intact pages, and `table` if it has any tables.

    Reads the whole file.
    """
    try:
        if not path.stat().st_size:
            return "is empty, and no database is, so what it had was lost"
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as database:
            (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (OSError, sqlite3.OperationalError):  # locked, or no permission: not damaged
        return ""
    except sqlite3.DatabaseError as error:
        return f"is damaged ({error})"
    if result != "ok":
        return f"is damaged ({' '.join(str(result).split())})"
    if table and tables - BOOKKEEPING and table not in tables:
        return f"is another program's or damaged (it has no table {table})"
    return ""
