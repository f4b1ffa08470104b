"""Dumps of PostgreSQL's databases into a backup, and back."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flows.stack import postgres
from flows.stack.processes import StackError
from labeling.child_environment import child_environment

DUMPED = ("prefect", "mlflow", "label-studio")


@dataclass(frozen=True)
class Databases:
    """The address of PostgreSQL, and the password of each server's role."""

    address: str
    passwords: dict[str, str]


def dump_databases(databases: Databases, directory: Path) -> None:
    """Write each database to `directory/NAME.dump`. Raises StackError."""
    for name in DUMPED:
        file = directory / f"{name}.dump"
        _run(databases, "pg_dump", name, "--format", "custom", "--no-owner", "--file", str(file))


def restore_databases(databases: Databases, directory: Path) -> None:
    """Load the dumps into empty databases, each in one transaction. Raises StackError."""
    for name in DUMPED:
        role = postgres.DATABASES[name]
        with postgres.connect(databases.address, databases.passwords[name], role) as connection:
            if connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public' LIMIT 1").fetchone():
                raise StackError(f"database {role} is not empty: restore before its server is started")
        file = directory / f"{name}.dump"
        _run(databases, "pg_restore", name, "--no-owner", "--exit-on-error", "--single-transaction", str(file))


def _run(databases: Databases, program: str, name: str, *options: str) -> None:
    """Run a program of PostgreSQL on a server's database. Raises StackError with its error output."""
    host, _, port = databases.address.rpartition(":")
    role = postgres.DATABASES[name]
    connection = ("--host", host, "--port", port, "--username", role, "--dbname", role, "--no-password")
    result = subprocess.run(
        [str(postgres.client(program)), *connection, *options],
        env={**child_environment("database-client", os.environ), "PGPASSWORD": databases.passwords[name]},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise StackError(f"{program} of database {role} failed: {result.stderr.strip()}")
