"""PostgreSQL for the servers of a production stack: its own cluster in the home directory, on loopback, with a database
and a role for each server. Passwords are never part of an address or a command line.

PostgreSQL refuses to run as root: then it runs as the user `postgres`, or as RLHF_POSTGRES_USER.
"""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from flows.stack.processes import StackError, run_as
from labeling.child_environment import child_environment

OLDEST = 14
PROBE_SECONDS = 5
DATABASES: Mapping[str, str] = {"prefect": "prefect", "mlflow": "mlflow", "label-studio": "label_studio"}  # roles too
OPTIONS = ("-c", "password_encryption=scram-sha-256", "-c", "max_connections=200")
INSTALL = "install it with `apt-get install postgresql`, or put the directory of its programs on PATH"


def programs() -> Path:
    """The directory with initdb, postgres and pg_dump. Raises StackError with installation instructions if missing."""
    for directory in _candidate_directories():
        if (directory / "postgres").is_file() and (directory / "initdb").is_file():
            output = _run([directory / "postgres", "--version"], check=True).stdout
            if int(output.split()[2].split(".")[0]) >= OLDEST:
                return directory
    raise StackError(f"PostgreSQL {OLDEST} or newer is not installed: {INSTALL}")


def client(program: str) -> Path:
    """The path of a client program such as pg_dump. Raises StackError."""
    path = next(
        (directory / program for directory in _candidate_directories() if (directory / program).is_file()), None
    ) or shutil.which(program)
    if path is None:
        raise StackError(f"{program} is not installed: {INSTALL}")
    return Path(path)


def _candidate_directories() -> list[Path]:
    """Directories that may have the programs: pg_config's, Debian's (newest first), and that on PATH."""
    directories = []
    if shutil.which("pg_config"):
        bindir = _run(["pg_config", "--bindir"]).stdout.strip()
        directories += [Path(bindir)] if bindir else []
    debian = Path("/usr/lib/postgresql")
    versions = sorted(
        (directory for directory in debian.glob("*/bin") if directory.parent.name.isdigit()),
        key=lambda directory: -int(directory.parent.name),
    )
    on_path = shutil.which("postgres")
    return [*directories, *versions, *([Path(on_path).resolve().parent] if on_path else [])]


def account() -> str | None:
    """The user that the database runs as; None for the current user. Raises StackError when it does not exist."""
    if os.geteuid() != 0:
        return None
    name = os.environ.get("RLHF_POSTGRES_USER", "postgres")
    try:
        if pwd.getpwnam(name).pw_uid == 0:
            raise StackError(f"RLHF_POSTGRES_USER={name} is root: PostgreSQL refuses that; set another user")
    except KeyError as error:
        raise StackError(
            f"PostgreSQL cannot run as root and there is no user '{name}': set RLHF_POSTGRES_USER"
        ) from error
    return name


def data_directory(home: Path) -> Path:
    """The data directory of the cluster."""
    return home / "postgres" / "data"


def create_cluster(home: Path, password: str) -> None:
    """Create the cluster if it does not exist; logins require the password. It is created in a temporary directory and
    renamed, so that an incomplete cluster is never used. Raises StackError."""
    data, bindir, user = data_directory(home), programs(), account()
    if data.exists():
        return
    data.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if user is not None:
        _grant_access(home, data.parent, user)
    partial = data.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", dir=data.parent) as file:
        file.write(password + "\n")
        file.flush()
        if user is not None:
            shutil.chown(file.name, user)
        command = [
            str(bindir / "initdb"),
            "--pgdata",
            str(partial),
            "--username",
            "postgres",
            "--pwfile",
            file.name,
            "--no-locale",
            "--encoding",
            "UTF8",
            "--auth",
            "scram-sha-256",
        ]
        result = _run(command, user=user, directory=data.parent)
    if result.returncode != 0:
        raise StackError(f"PostgreSQL's initdb failed in {partial}: {result.stderr.strip() or result.stdout.strip()}")
    partial.rename(data)


def _grant_access(home: Path, directory: Path, user: str) -> None:
    """Make `user` the owner of `directory` and let it traverse `home`. Raises StackError if a parent denies access."""
    shutil.chown(home, group=pwd.getpwnam(user).pw_gid)
    home.chmod(0o710)
    shutil.chown(directory, user, pwd.getpwnam(user).pw_gid)
    if _run(["test", "-x", directory], user=user).returncode:
        raise StackError(
            f"user {user}, who runs PostgreSQL, cannot access {directory}: set RLHF_HOME to a directory outside "
            "of directories that only root can access, such as /srv/rlhf"
        )


def _run(
    command: Sequence[str | Path], *, user: str | None = None, directory: Path | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program of PostgreSQL's to its end. Raises CalledProcessError with `check`."""
    environment = child_environment("program", os.environ)
    return subprocess.run(
        command, **run_as(user), cwd=directory, env=environment, capture_output=True, text=True, check=check
    )


def url(driver: str, role: str, address: str) -> str:
    """SQLAlchemy's URL of a server's database. The password comes from the variable PGPASSWORD."""
    return f"postgresql+{driver}://{role}@{address}/{role}"


def connect(address: str, password: str, role: str = "postgres") -> psycopg.Connection:
    """A connection that commits every statement. Raises psycopg.Error."""
    host, _, port = address.rpartition(":")
    return psycopg.connect(
        host=host,
        port=int(port),
        user=role,
        password=password,
        dbname=role,
        autocommit=True,
        connect_timeout=PROBE_SECONDS,
    )


def probe(address: str, password: str) -> tuple[str, str]:
    """Check whether the database answers: a problem ("" if healthy) and its version."""
    try:
        with connect(address, password) as connection:
            return "", str(connection.info.parameter_status("server_version")).split()[0]
    except psycopg.Error as error:
        return str(error).strip().splitlines()[0] or type(error).__name__, ""


def create_databases(address: str, password: str, passwords: Mapping[str, str]) -> None:
    """Create a missing role and database for each server, and set the `passwords`, by server.

    A role may connect only to its own database. Raises psycopg.Error.
    """
    with connect(address, password) as connection:
        for server, name in DATABASES.items():
            role = sql.Identifier(name)
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
            secret = sql.Literal(_verifier(connection, name, passwords[server]))
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, secret))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
            connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(role))


def _verifier(connection: psycopg.Connection, role: str, password: str) -> str:
    """The SCRAM verifier, computed on the client: no statement contains the password, so no log can show it."""
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    return verifier.decode()


def passwords_from(environment: Mapping[str, str]) -> dict[str, str]:
    """The roles' passwords by server, from PREFECT_DATABASE_PASSWORD and so on."""
    return {name: environment[f"{name.replace('-', '_').upper()}_DATABASE_PASSWORD"] for name in DATABASES}


def main() -> None:
    """`python -m flows.stack.postgres`: roles and databases on the server at PGHOST and PGPORT, for containers."""
    address = f"{os.environ['PGHOST']}:{os.environ.get('PGPORT', '5432')}"
    create_databases(address, os.environ["PGPASSWORD"], passwords_from(os.environ))
    print(f"databases {', '.join(DATABASES.values())} exist", file=sys.stderr)


if __name__ == "__main__":
    main()
