"""Server processes that outlive the command that started them, identified reliably so that no other is stopped.

A process is identified by its id and a marker in its environment, as is every process of its group, or by its start
time where the environment cannot be read: a reused process id matches neither. The start time alone does not suffice:
the kernel reports it relative to the clock, so when the clock is set, the start times of running processes move.
"""

import os
import pwd
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from alignment.errors import RLHFError
from alignment.records import Record

MARK = "RLHF_STACK_MARK"
STOP_SECONDS = 15.0
START_TIME_TOLERANCE_SECONDS = 1.0
PORTS_TO_TRY = 200
PORT_SECONDS = 10.0


class StackError(RLHFError):
    """A server of the local stack that cannot be started, found or reached."""


class NotReady(StackError):
    """A server of the local stack that does not answer."""


class PortLost(StackError):
    """Another process took the port of a server before it listened there."""


class Process(Record):
    """A started server: enough to identify it again from a file, also after a reboot."""

    pid: int
    started_at: float
    mark: str


def launch(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path, user: str | None = None
) -> Process:
    """Start a command in its own session, with its output appended to `log`, and return at once.

    Its files are readable by their owner only. `user`: run as another user, which requires root.
    """
    mark = secrets.token_hex(8)
    directory.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        output.flush()
        child = subprocess.Popen(
            list(command),
            env={**environment, MARK: mark},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **run_as(user),
            umask=0o077,
        )
    return Process(pid=child.pid, started_at=psutil.Process(child.pid).create_time(), mark=mark)


def run_as(user: str | None) -> dict[str, Any]:
    """Arguments of subprocess to run as another user without our groups; none for the current user."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def is_alive(process: Process) -> bool:
    """Whether the started process is still running; another process with the same id does not count."""
    return _leader(process) is not None


def stop(process: Process, seconds: float = STOP_SECONDS, polite: signal.Signals = signal.SIGTERM) -> bool:
    """Stop a process group: `polite` first, SIGKILL after `seconds`. False when nothing was running."""
    running = members(process)
    _send(running, polite)
    _, stubborn = psutil.wait_procs(running, timeout=seconds)
    stubborn = [*stubborn, *(late for late in members(process) if late not in stubborn)]
    _send(stubborn, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=seconds)
    return bool(running)


def members(process: Process) -> list[psutil.Process]:
    """Every running process of the started group, also when its leader has ended."""
    leader = _leader(process)
    if leader is None and not _may_have_orphans(process):
        return []
    return [other for other in psutil.process_iter() if _belongs(other, process, leader)]


def listens(process: Process, port: int) -> bool:
    """Whether the started process, or one of its group, listens on a port."""
    leader = _leader(process)
    return any(_listens(member, port) for member in ([] if leader is None else [leader, *members(process)]))


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        sockets = process.net_connections("tcp")
    except psutil.Error:
        return False
    return any(sock.status == psutil.CONN_LISTEN and sock.laddr.port == port for sock in sockets)


def _leader(process: Process) -> psutil.Process | None:
    try:
        leader = psutil.Process(process.pid)
        is_same = abs(leader.create_time() - process.started_at) < START_TIME_TOLERANCE_SECONDS
        is_same = is_same or _has_mark(leader, process.mark)
        return leader if is_same and leader.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.AccessDenied:
        return False


def _may_have_orphans(process: Process) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _belongs(other: psutil.Process, process: Process, leader: psutil.Process | None) -> bool:
    """Whether a process is in the group, and is its leader or has the marker."""
    try:
        if os.getpgid(other.pid) != process.pid or other.status() == psutil.STATUS_ZOMBIE:
            return False
        return other == leader or _has_mark(other, process.mark)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def _send(processes: Sequence[psutil.Process], sign: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(sign)  # psutil checks the start time again before it sends
        except psutil.NoSuchProcess:
            continue


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wait_for_port(host: str, port: int, seconds: float = PORT_SECONDS) -> None:
    """Wait until a killed server has released its port, which takes a moment after the process has ended. After
    `seconds` the port belongs to another process."""
    deadline = time.monotonic() + seconds
    while not port_is_free(host, port) and time.monotonic() < deadline:
        time.sleep(0.05)


def choose_port(host: str, preferred: int, taken: Sequence[int] = ()) -> int:
    """The preferred port, or the next free port above it. Raises StackError when there is none nearby."""
    for port in range(preferred, min(preferred + PORTS_TO_TRY, 65536)):
        if port not in taken and port_is_free(host, port):
            return port
    raise StackError(f"no free port on {host} from {preferred} on; set one, for example RLHF_PREFECT_PORT=24200")
