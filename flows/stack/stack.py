"""The local stack: a Prefect, an MLflow and a Label Studio server on loopback, under one home directory; in the profile
`production` on PostgreSQL, behind passwords, and with workers.

    home/credentials.json   accounts, readable by the owner only       home/logs/        one file a server
    home/stack.json         profile, ports, processes                      home/artifacts/   published outputs of stages

If a port is busy, the next free port is used and remembered. A busy port that was set by its variable
(RLHF_PREFECT_PORT and so on) is an error.
"""

import os
import signal
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from flows.disk import check_disk
from flows.home import create_home, home_directory
from flows.recipe.credentials import shown_address
from flows.stack import commands, credentials, entrance, postgres, processes, services
from flows.stack.databases import check_database
from flows.stack.health import (
    ADDRESSES,
    Health,
    check_address,
    health_elsewhere,
    health_of,
    lets_strangers_in,
    serves_pages_to_any_name,
)
from flows.stack.listeners import guard, listening_accounts
from flows.stack.processes import NotReady, PortLost, Process, StackError
from flows.stack.proxies import direct_loopback
from flows.stack.services import HOST, NAMES, POOLS, TITLES, WAVES, Credentials, Name, Profile, Site
from flows.stack.state import Server, State, check_restored, exists, locked
from flows.stack.state import read as read_state
from flows.stack.state import write as write_state
from labeling.server import process as label_studio

BEHIND_TLS = "RLHF_BEHIND_TLS"
START_SECONDS = 600.0
POLL_SECONDS = 0.25
LOG_TAIL_CHARACTERS = 1500
STARTS = 5  # of a part whose port is taken between its choice and its use


@dataclass(frozen=True)
class Stack:
    """A running stack: its addresses and accounts."""

    site: Site
    notes: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Its home directory."""
        return self.site.home

    @property
    def credentials(self) -> Credentials:
        """Its accounts."""
        return self.site.credentials

    @property
    def urls(self) -> dict[Name, str]:
        """The servers' addresses."""
        return {name: self.site.url(name) for name in NAMES}

    def environment(self) -> dict[str, str]:
        """Environment variables with the servers' addresses; set them before importing Prefect or MLflow."""
        hosts = {address.rpartition(":")[0] for address in self.site.addresses.values()}
        return self.site.client_environment() | direct_loopback(os.environ, *sorted(hosts)) | services.NO_NETRC


@dataclass(frozen=True)
class ServerStatus:
    """A row of `rlhf status`. A server elsewhere has no `log`."""

    name: Name
    title: str
    url: str
    running: bool
    health: Health
    log_in_as: str = ""
    log: Path | None = None


def up(home: Path | None = None, profile: Profile | None = None, workers: bool = False) -> Stack:
    """Start the parts that are not running, wait until all are healthy, and return the stack.

    `profile` and `workers` are remembered; a stack cannot change its profile. Raises StackError when a part does not
    start; the others stay up, and the next `up` starts the rest.
    """
    home = home_directory(home)
    check_restored(home)
    note = create_home(home)
    with locked(home):
        state = _requested_state(home, profile, workers)
        _use_no_proxy(state)
        known = credentials.ensure(home, state.profile)
        _stop_unguarded(home, state, known)
        running = _up(home, state, known, state.waves)
    return replace(running, notes=(note, *running.notes)) if note else running


def _site(home: Path, state: State, known: Credentials) -> Site:
    """Addresses, accounts and settings of a stack. From now on this process connects to a server only while our account
    listens on its port."""
    site = state.site(home, known)
    guard([site.addresses[name] for name in NAMES if name in site.addresses], home)
    return site


def _stop_unguarded(home: Path, state: State, known: Credentials) -> None:
    """Stop a Prefect server without password or checks, from before this project had them, with its workers, and a
    Label Studio whose pages have no host name of their own."""
    if _is_running("prefect", state) and _listens("prefect", state) and lets_strangers_in(_site(home, state, known)):
        for name in ("prefect", *POOLS):
            if name in state.servers:
                _stop(name, state.servers[name].process)
    if _is_running("label-studio", state):
        site, process = state.site(home, known), state.servers["label-studio"].process
        if _label_studio(site).page_host and serves_pages_to_any_name(site):
            _stop("label-studio", process)


def up_database(home: Path) -> Site:
    """Start only the database of a production stack, with its roles and databases. Raises StackError."""
    with locked(home):
        state = _requested_state(home, "production", False)
        return _up(home, state, credentials.ensure(home, state.profile), state.waves[:1]).site


def _up(home: Path, state: State, known: Credentials, waves: Collection[tuple[Name, ...]]) -> Stack:
    notes: list[str] = []
    for name in NAMES:  # before any is started: one that is refused stops all
        if state.profile == "default" and not _is_running(name, state):
            check_database(home, name)
    for wave in waves:
        state = _start_wave(wave, home, state, known, notes)
        if "postgres" in wave:
            address = _site(home, state, known).addresses["postgres"]
            postgres.create_databases(address, known.secrets.postgres_password, known.secrets.databases)
    return Stack(site=_site(home, state, known), notes=tuple(notes))


def _start_wave(names: Collection[Name], home: Path, state: State, known: Credentials, notes: list[str]) -> State:
    """Start what is not running and wait for all. A part whose port somebody else took meanwhile is started again, on
    another port."""
    to_start = [name for name in names if not _is_healthy(name, home, state, known)]
    for _ in range(STARTS):
        for name in to_start:
            state = _start(name, home, state, known, notes)
        to_start = _wait_for_all(names, home, state, known)
        if not to_start:
            return state
    lost = " and ".join(f"{TITLES[name]} ({state.servers[name].port})" for name in to_start)
    raise NotReady(f"other processes took the ports of {lost}, {STARTS} times: `rlhf up` tries again")


def _requested_state(home: Path, profile: Profile | None, workers: bool) -> State:
    """The remembered state, updated by the requested profile and workers."""
    before = read_state(home)
    if profile is not None and before.servers and profile != before.profile:
        raise StackError(
            f"the stack in {home} has the profile '{before.profile}': use another home (--home or "
            f"RLHF_HOME) for '{profile}'"
        )
    bind = os.environ.get("RLHF_BIND_HOST", before.bind)
    state = before.model_copy(
        update={"profile": profile or before.profile, "workers": before.workers or workers, "bind": bind}
    )
    if state.profile == "default" and not services.is_loopback(bind):
        raise StackError(
            f"RLHF_BIND_HOST={bind} would expose servers without passwords: use "
            "`rlhf up --profile production`, which has passwords, or unset it"
        )
    if not services.is_loopback(bind) and os.environ.get(BEHIND_TLS) != "1":
        raise StackError(
            f"RLHF_BIND_HOST={bind} would send passwords over the network in the clear: put a proxy with TLS in front "
            f"and set {BEHIND_TLS}=1 (docs/production.md), or unset RLHF_BIND_HOST"
        )
    return state


def down(home: Path | None = None) -> list[str]:
    """Stop the processes that `up` started, workers first and the database last; returns the names of those stopped."""
    home = home_directory(home)
    if not home.is_dir():
        return []
    stopped: dict[Name, bool] = {}
    with locked(home):
        state = read_state(home)
        for wave in reversed(WAVES):
            running = {name: state.servers[name].process for name in wave if name in state.servers}
            with ThreadPoolExecutor(len(wave)) as pool:
                stopped |= dict(zip(running, pool.map(_stop, running, running.values()), strict=True))
        ports = {name: Server(port=server.port) for name, server in state.servers.items()}
        write_state(home, state.model_copy(update={"servers": ports}))
    return [TITLES[name] for wave in WAVES for name in wave if stopped.get(name)]


def _stop(name: Name, process: Process | None) -> bool:
    """Stop a part. For PostgreSQL SIGINT is a fast, clean shutdown; SIGTERM would wait for open connections."""
    return process is not None and processes.stop(
        process, polite=signal.SIGINT if name == "postgres" else signal.SIGTERM
    )


def status(home: Path | None = None, names: Collection[Name] | None = None) -> list[ServerStatus]:
    """Status and health of the parts in `names`, by default of all. Without a stack, of the servers elsewhere."""
    home = home_directory(home)
    elsewhere = [name for name in NAMES if os.environ.get(ADDRESSES[name])]
    if names is None and elsewhere and not exists(home):
        return status_elsewhere(elsewhere)
    state, known = read_state(home), credentials.read(home)
    _use_no_proxy(state)
    parts = [name for name in state.parts if names is None or name in names]
    with ThreadPoolExecutor(max(1, len(parts))) as pool:
        return list(pool.map(lambda name: _status_of(name, home, state, known), parts))


def entrance_link(home: Path | None = None) -> str:
    """A link that opens Prefect's pages once; "" without a stack."""
    home = home_directory(home)
    known = credentials.read(home)
    return "" if known is None else entrance.link(_site(home, read_state(home), known))


def pages_link(home: Path | None = None) -> str:
    """The link that opens Label Studio's pages in a browser of this machine; "" without a stack."""
    home = home_directory(home)
    known = credentials.read(home)
    site = None if known is None else read_state(home).site(home, known)
    if site is None or not site.url("label-studio"):
        return ""
    return label_studio.pages_link(_label_studio(site))


def _label_studio(site: Site) -> label_studio.ServerSettings:
    return commands.label_studio_settings(site, Path("label-studio"))


def _use_no_proxy(state: State) -> None:
    """Let this process ask the stack directly: health checks and the libraries of the servers read these variables."""
    os.environ.update(direct_loopback(os.environ, state.bind))


def status_elsewhere(names: Collection[Name]) -> list[ServerStatus]:
    """Status and health of the servers that the environment names. Raises StackError for what is no address."""
    for name in names:
        check_address(ADDRESSES[name])
    with ThreadPoolExecutor(len(names)) as pool:
        healths = [*pool.map(health_elsewhere, names)]
    urls = [shown_address(os.environ[ADDRESSES[name]]) for name in names]
    return [
        ServerStatus(name, TITLES[name], url, running=True, health=health, log_in_as="elsewhere")
        for name, url, health in zip(names, urls, healths, strict=True)
    ]


def connect(home: Path | None = None, needed: Collection[Name] = NAMES) -> Stack:
    """The running stack. Raises StackError, which names `rlhf up`, when a server in `needed` does not answer."""
    home = home_directory(home)
    rows = status(home, needed)
    silent = [f"{row.title} ({row.health.problem})" for row in rows if not row.health.ok]
    known = credentials.read(home)
    if silent or known is None:
        raise NotReady(f"{' and '.join(silent)} of the stack in {home}: start the servers with `rlhf up`")
    return Stack(site=_site(home, read_state(home), known))


def _status_of(name: Name, home: Path, state: State, known: Credentials | None) -> ServerStatus:
    server, running = state.servers.get(name), _is_running(name, state)
    health = Health(ok=False, problem="not running")
    if known is not None and running:
        health = _health(name, home, state, known)
    url = _site(home, state, known).url(name) if known is not None and server is not None else ""
    return ServerStatus(
        name=name,
        title=TITLES[name],
        url=url.removeprefix("http://") if name == "postgres" else url,
        running=running,
        health=health,
        log_in_as=services.log_in_as(name, state.profile, known),
        log=_log(home, name),
    )


def _is_running(name: Name, state: State) -> bool:
    server = state.servers.get(name)
    return server is not None and server.process is not None and processes.is_alive(server.process)


def _is_healthy(name: Name, home: Path, state: State, known: Credentials) -> bool:
    return _is_running(name, state) and _health(name, home, state, known).ok


def _start(name: Name, home: Path, state: State, known: Credentials, notes: list[str]) -> State:
    """Stop remaining processes of a part and start it; the state is written before the health check."""
    check_disk(home)
    before = state.servers.get(name)
    if before is not None and before.process is not None:
        _stop(name, before.process)
        processes.wait_for_port(HOST, before.port)
    taken = [server.port for other, server in state.servers.items() if other != name]
    port = _port(name, before, taken, notes)
    state = state.model_copy(update={"servers": {**state.servers, name: Server(port=port)}})
    site = _site(home, state, known)
    commands.prepare(name, site)
    launch = commands.launch_of(name, site)
    process = processes.launch(
        launch.command,
        environment=launch.environment,
        directory=launch.directory,
        log=_log(home, name),
        user=launch.user,
    )
    state = state.model_copy(update={"servers": {**state.servers, name: Server(port=port, process=process)}})
    write_state(home, state)
    return state


def _port(name: Name, before: Server | None, taken: list[int], notes: list[str]) -> int:
    variable = services.port_variable(name)
    fixed = os.environ.get(variable)
    if fixed is not None:
        if not fixed.isdigit() or not 1 <= int(fixed) <= 65535:
            raise StackError(f"{variable}={fixed} is not a port: set a number from 1 to 65535")
        if not processes.port_is_free(HOST, int(fixed)):
            raise StackError(f"port {fixed} is busy ({variable}): free it, set another, or unset {variable}")
        return int(fixed)
    preferred = before.port if before is not None else services.DEFAULT_PORTS[name]
    port = processes.choose_port(HOST, preferred, taken)
    if port != preferred:
        notes.append(f"port {preferred} is busy, so {TITLES[name]} is on {port}")
    return port


def _wait_for_all(names: Collection[Name], home: Path, state: State, known: Credentials) -> list[Name]:
    """Wait until all are healthy; returns those whose port is taken. Raises NotReady at the first that ended."""
    failed = Event()
    with ThreadPoolExecutor(len(names)) as pool:
        waits = {name: pool.submit(_wait_for, name, home, state, known, failed) for name in names}
    errors = {name: error for name, wait in waits.items() if (error := wait.exception()) is not None}
    lost = [name for name, error in errors.items() if isinstance(error, PortLost)]
    if problems := [str(error) for name, error in errors.items() if name not in lost]:
        raise NotReady("\n".join(problems))
    return lost


def _wait_for(name: Name, home: Path, state: State, known: Credentials, failed: Event) -> None:
    """Wait until a part is healthy, or another failed. Raises PortLost, or StackError with the end of its log if it
    ended or took too long. It is asked, with its password, only when it listens itself."""
    deadline = time.monotonic() + START_SECONDS
    server = state.servers[name]
    while not (health := _health(name, home, state, known)).ok and not failed.is_set():
        ended = server.process is None or not processes.is_alive(server.process)
        try:
            if health.refused:
                raise StackError(
                    f"{TITLES[name]} refuses the token of its owner: its account was removed. See {_log(home, name)}; "
                    "a copy of the home is restored with `rlhf restore`"
                )
            if listening_accounts(HOST, server.port) and not _listens(name, state):  # in this order: it may just begin
                raise PortLost(f"another process has port {server.port} of {TITLES[name]}")
            if ended or time.monotonic() > deadline:
                raise StackError(_reason(name, home, health, ended=ended))
        except StackError:
            failed.set()
            raise
        time.sleep(POLL_SECONDS)


def _reason(name: Name, home: Path, health: Health, *, ended: bool) -> str:
    """Why a part did not start, with the end of its log."""
    log = _log(home, name)
    reason = "ended before it was ready" if ended else f"is not ready after {START_SECONDS:.0f} s: {health.problem}"
    tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
    return f"{TITLES[name]} {reason}. `rlhf up` tries again; the end of {log}:\n{tail}"


def _health(name: Name, home: Path, state: State, known: Credentials) -> Health:
    """The health of a part that listens on its port itself; nothing is sent to another process there."""
    if not _listens(name, state):
        return Health(ok=False, problem=f"it does not listen on its port {state.servers[name].port}")
    return health_of(name, _site(home, state, known))


def _listens(name: Name, state: State) -> bool:
    server = state.servers[name]
    return server.process is not None and processes.listens(server.process, server.port)


def _log(home: Path, name: Name) -> Path:
    return home / "logs" / f"{name}.log"
