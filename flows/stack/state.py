"""The state of a stack between commands: its profile, ports and processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from alignment.artifacts import PRIVATE, write_text
from alignment.bounded import read_bounded
from alignment.records import Record
from flows.console import echo
from flows.disk import user_name
from flows.home import STATE
from flows.locks import open_private, wait_for
from flows.stack.processes import Process, StackError
from flows.stack.services import HOST, NAMES, WAVES, Credentials, Name, Profile, Site

FILE = STATE
UNFINISHED = "restore.unfinished"  # in a home during a restore
STAGING = ".restoring"  # suffix of the directory beside a home, or name of the one in it, that a restore works in


class Server(Record):
    """A server of the stack: its port and its process."""

    port: int
    process: Process | None = None

    @property
    def url(self) -> str:
        """Its address on this machine, without a slash at the end."""
        return f"http://{HOST}:{self.port}"


class State(Record):
    """The content of `stack.json`. `bind` is the servers' listen address; database and workers stay on loopback."""

    profile: Profile = "default"
    workers: bool = False
    bind: str = HOST
    servers: dict[Name, Server] = Field(default_factory=dict)

    @property
    def waves(self) -> list[tuple[Name, ...]]:
        """The parts of this stack in start order."""
        database, servers, workers = WAVES
        production = self.profile == "production"
        return [*([database] if production else []), servers, *([workers] if production or self.workers else [])]

    @property
    def parts(self) -> list[Name]:
        """The parts of this stack."""
        return [name for wave in self.waves for name in wave]

    def site(self, home: Path, known: Credentials) -> Site:
        """Addresses, accounts and settings of this stack."""
        host = HOST if self.bind in (HOST, "0.0.0.0") else self.bind
        addresses = {name: f"{host if name in NAMES else HOST}:{server.port}" for name, server in self.servers.items()}
        hosts = tuple(filter(None, os.environ.get("RLHF_ALLOWED_HOSTS", "").split(",")))
        return Site(
            home=home,
            credentials=known,
            addresses=addresses,
            profile=self.profile,
            bind=self.bind,
            allowed_hosts=hosts,
            public_url=os.environ.get("RLHF_PUBLIC_URL", "").rstrip("/"),
        )


def exists(home: Path) -> bool:
    """Whether a stack was ever started in `home`."""
    return (home / FILE).exists()


def staging(home: Path) -> Path:
    """The directory that a restore works in: beside the home, on the same disk, or in a home that is a volume."""
    beside = home.with_name(home.name + STAGING)
    return home / STAGING if home.is_mount() or not os.access(home.parent, os.W_OK) else beside


def check_restored(home: Path) -> None:
    """Raise StackError if a restore into `home` was interrupted."""
    if (home / UNFINISHED).exists():
        raise StackError(f"a restore into {home} was not finished: remove that directory and restore again")
    if not exists(home) and staging(home).exists():
        raise StackError(
            f"a restore into {home} was not finished, and nothing in it was changed: restore again, or remove "
            f"{staging(home)}"
        )


def read(home: Path) -> State:
    """The state of the stack in `home`, the default before the first start. Raises StackError if unreadable."""
    path = home / FILE
    if not exists(home):
        return State()
    try:
        return State.model_validate_json(read_bounded(path))
    except OSError as error:
        raise StackError(
            f"{path} cannot be read by the user {user_name()} ({error.strerror or error}): change its owner or mode, "
            "or choose another home with --home or RLHF_HOME"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise StackError(f"{path} cannot be read: {problem}; stop the servers by hand and remove the file") from error


def write(home: Path, state: State) -> None:
    """Write `stack.json`."""
    write_text(home / FILE, state.model_dump_json(indent=2) + "\n", PRIVATE)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of the stack, so that two commands do not change it at once."""
    path = home / "stack.lock"
    with open_private(path) as file:
        wait_for(file, lambda who: echo(f"rlhf: waiting for {path}, which {who} holds", err=True))
        yield
