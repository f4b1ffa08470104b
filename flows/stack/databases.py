"""The SQLite files of the servers, looked at before a server starts on them."""

import sqlite3
from contextlib import closing
from pathlib import Path

from flows.stack.processes import StackError
from flows.stack.services import TITLES, Name

FILES: dict[Name, str] = {
    "prefect": "prefect/prefect.db",
    "mlflow": "mlflow/mlflow.db",
    "label-studio": "label-studio/label_studio.sqlite3",
}
BUSY_SECONDS = 5.0


def check_database(home: Path, name: Name) -> None:
    """Raise StackError for a server's database that is damaged, before the server fails on it or starts a new one."""
    path = home / FILES.get(name, "")
    problem = damage(path) if name in FILES and path.exists() else ""
    if problem:
        raise StackError(
            f"{path}, the database of {TITLES[name]}, is damaged ({problem}): restore a backup into a new home "
            "(`rlhf restore`), or move the file away, and `rlhf up` starts the server without what was in it"
        )


def damage(path: Path) -> str:
    """What is wrong with a SQLite file; "" if its pages are intact. Reads the whole file."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as database:
            (result,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # locked, or no permission: not damaged
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if result == "ok" else " ".join(str(result).split())
