"""The local stack: a Prefect, an MLflow and a Label Studio server on loopback, under one home directory.

    home/credentials.json   accounts, readable by the owner alone      home/logs/        one file a server
    home/stack.json         ports and processes                        home/artifacts/   published outputs of stages

A port that is busy is passed over for the next free one, which is remembered, unless its variable (RLHF_PREFECT_PORT
and so on) names it: then it is an error.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows import outages, processes, services
from flows.processes import Process, StackError
from flows.services import HOST, NAMES, TITLES, Credentials, Health, Name

START_SECONDS = 240.0
POLL_SECONDS = 0.25
LOG_TAIL_CHARACTERS = 1500


class Server(BaseModel):
    """One server of the stack: its port, and the process that was started for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int
    process: Process | None = None

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://{HOST}:{self.port}"


class State(BaseModel):
    """What `stack.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: dict[Name, Server] = Field(default_factory=dict)


class Stack(BaseModel):
    """A running stack: where its servers are and who may log in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    urls: dict[Name, str]
    credentials: Credentials
    notes: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """How this project, Prefect and MLflow find the servers; to be set before either is imported."""
        return {
            **services.QUIET,
            "RLHF_HOME": str(self.home),
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_API_URL": f"{self.urls['prefect']}/api",
            "MLFLOW_TRACKING_URI": self.urls["mlflow"],
            "MLFLOW_REGISTRY_URI": self.urls["mlflow"],
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            **outages.retries(),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,alignment,labeling",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # by which a run that was killed is told from a living one
            "LABEL_STUDIO_URL": self.urls["label-studio"],
            "LABEL_STUDIO_API_KEY": self.credentials.label_studio_token,
        }


class ServerStatus(BaseModel):
    """A row of `rlhf status`."""

    model_config = ConfigDict(frozen=True)

    name: Name
    title: str
    url: str
    running: bool
    health: Health
    log_in_as: str
    log: Path


def home_directory(home: Path | None = None) -> Path:
    """The home of the stack: as given, or RLHF_HOME, or `.rlhf` here."""
    return (home or Path(os.environ.get("RLHF_HOME", ".rlhf"))).expanduser().resolve()


def up(home: Path | None = None) -> Stack:
    """Start what does not run yet, wait until all three answer, and return the stack.

    Raises StackError when a server does not come up; those that did stay up, and the next `up` mends the rest.
    """
    home = home_directory(home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _lock(home):
        credentials = _credentials(home)
        state = _read_state(home)
        notes: list[str] = []
        for name in NAMES:
            if not _is_well(name, state.servers.get(name), credentials):
                state = _start(name, home, state, credentials, notes)
        _wait_for_all(home, state, credentials)
    return _stack(home, state, credentials, notes)


def down(home: Path | None = None) -> list[str]:
    """Stop exactly the processes that `up` started; return the titles of the servers that were stopped."""
    home = home_directory(home)
    if not home.is_dir():
        return []
    with _lock(home):
        state = _read_state(home)
        running = {name: server.process for name, server in state.servers.items() if server.process is not None}
        with ThreadPoolExecutor(len(NAMES)) as pool:
            stopped = dict(zip(running, pool.map(processes.stop, running.values()), strict=True))
        _write_state(home, State(servers={name: Server(port=server.port) for name, server in state.servers.items()}))
    return [TITLES[name] for name in NAMES if stopped.get(name)]


def status(home: Path | None = None) -> list[ServerStatus]:
    """How each server is, running or not."""
    home = home_directory(home)
    state, credentials = _read_state(home), _existing_credentials(home)
    with ThreadPoolExecutor(len(NAMES)) as pool:
        return list(pool.map(lambda name: _status_of(name, home, state.servers.get(name), credentials), NAMES))


def connect(home: Path | None = None, needed: Collection[Name] = NAMES) -> Stack:
    """The running stack. Raises StackError, naming `rlhf up`, when a server of it that is needed does not answer."""
    home = home_directory(home)
    rows = status(home)
    silent = [f"{row.title} ({row.health.problem})" for row in rows if row.name in needed and not row.health.ok]
    credentials = _existing_credentials(home)
    if silent or credentials is None:
        raise StackError(f"{' and '.join(silent)} of the stack in {home}: start the servers with `rlhf up`")
    return Stack(home=home, urls={row.name: row.url for row in rows}, credentials=credentials)


def _status_of(name: Name, home: Path, server: Server | None, credentials: Credentials | None) -> ServerStatus:
    running = server is not None and server.process is not None and processes.is_alive(server.process)
    health = Health(ok=False, problem="not running")
    if server is not None and credentials is not None and running:
        health = services.health_of(name, server.url, credentials.label_studio_token)
    who = credentials.label_studio_email if credentials is not None and name == "label-studio" else "no login"
    return ServerStatus(
        name=name, title=TITLES[name], url=server.url if server else "", running=running, health=health, log_in_as=who,
        log=_log(home, name),
    )  # fmt: skip


def _is_well(name: Name, server: Server | None, credentials: Credentials) -> bool:
    if server is None or server.process is None or not processes.is_alive(server.process):
        return False
    return services.health_of(name, server.url, credentials.label_studio_token).ok


def _start(name: Name, home: Path, state: State, credentials: Credentials, notes: list[str]) -> State:
    """Stop what may be left of a server and start it; the state is on disk before anything is waited for."""
    before = state.servers.get(name)
    if before is not None and before.process is not None:
        processes.stop(before.process)
        processes.wait_for_port(HOST, before.port)
    taken = [server.port for other, server in state.servers.items() if other != name]
    port = _port(name, before, taken, notes)
    launch = services.launch_of(name, home, port, credentials)
    process = processes.launch(
        launch.command, environment=launch.environment, directory=launch.directory, log=_log(home, name)
    )
    state = State(servers={**state.servers, name: Server(port=port, process=process)})
    _write_state(home, state)
    return state


def _port(name: Name, before: Server | None, taken: list[int], notes: list[str]) -> int:
    variable = services.port_variable(name)
    fixed = os.environ.get(variable)
    if fixed is not None:
        if not fixed.isdigit() or not 1 <= int(fixed) <= 65535:
            raise StackError(f"{variable}={fixed} is not a port: give a number from 1 to 65535")
        if not processes.port_is_free(HOST, int(fixed)):
            raise StackError(f"port {fixed} is busy ({variable}): free it, name another, or unset {variable}")
        return int(fixed)
    preferred = before.port if before is not None else services.DEFAULT_PORTS[name]
    port = processes.choose_port(HOST, preferred, taken)
    if port != preferred:
        notes.append(f"port {preferred} is busy, so {TITLES[name]} is on {port}")
    return port


def _wait_for_all(home: Path, state: State, credentials: Credentials) -> None:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        waits = [pool.submit(_wait_for, name, home, state.servers[name], credentials) for name in NAMES]
    problems = [str(wait.exception()) for wait in waits if wait.exception() is not None]
    if problems:
        raise StackError("\n".join(problems))


def _wait_for(name: Name, home: Path, server: Server, credentials: Credentials) -> None:
    """Wait until a server works. Raises StackError with the end of its log when it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while not (health := services.health_of(name, server.url, credentials.label_studio_token)).ok:
        ended = server.process is None or not processes.is_alive(server.process)
        if ended or time.monotonic() > deadline:
            log = _log(home, name)
            late = f"is not ready after {START_SECONDS:.0f} s: {health.problem}"
            seen = "ended before it was ready" if ended else late
            tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
            raise StackError(f"{TITLES[name]} {seen}. `rlhf up` tries again; the end of {log}:\n{tail}")
        time.sleep(POLL_SECONDS)


def _stack(home: Path, state: State, credentials: Credentials, notes: list[str]) -> Stack:
    urls = {name: state.servers[name].url for name in NAMES}
    return Stack(home=home, urls=urls, credentials=credentials, notes=tuple(notes))


def _log(home: Path, name: Name) -> Path:
    return home / "logs" / f"{name}.log"


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Keep two commands from changing the same stack at once."""
    with (home / "stack.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_state(home: Path) -> State:
    path = home / "stack.json"
    if not path.exists():
        return State()
    try:
        return State.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise StackError(f"{path} cannot be read: {problem}; end the servers by hand and remove the file") from error


def _write_state(home: Path, state: State) -> None:
    write_private(home / "stack.json", state.model_dump_json(indent=2))


def _credentials(home: Path) -> Credentials:
    """The accounts of this stack, made on the first start."""
    existing = _existing_credentials(home)
    if existing is not None:
        return existing
    made = Credentials(
        label_studio_email="owner@rlhf.local",
        label_studio_password=secrets.token_urlsafe(12),
        label_studio_token=secrets.token_hex(20),
        label_studio_secret_key=secrets.token_urlsafe(40),
    )
    write_private(home / "credentials.json", made.model_dump_json(indent=2))
    return made


def _existing_credentials(home: Path) -> Credentials | None:
    path = home / "credentials.json"
    if not path.exists():
        return None
    try:
        return Credentials.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StackError(
            f"{path} cannot be read: {error.errors()[0]['msg']}; restore it, or remove {home} to begin anew"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one move."""
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
