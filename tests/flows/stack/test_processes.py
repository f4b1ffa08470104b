"""Started processes are found again and stopped with all children; other processes are left alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.stack.processes import Process, StackError, choose_port, is_alive, launch, members, port_is_free, stop

PARENT = """
import signal, subprocess, sys, time
{before}
child = subprocess.Popen([sys.executable, "-c", "{before_child}; import time; time.sleep(60)"])
open("child", "w").write(str(child.pid))
time.sleep(60)
"""
IGNORE = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def start(directory: Path, *, stubborn: bool = False) -> tuple[Process, int]:
    """A process with a child, and the child's id."""
    code = PARENT.format(before=IGNORE if stubborn else "", before_child=IGNORE if stubborn else "pass")
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = launch([sys.executable, "-c", code], environment=told, directory=directory, log=directory / "log")
    until(lambda: (directory / "child").exists() and (directory / "child").read_text() != "")
    return process, int((directory / "child").read_text())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Process, int]]:
    process, child = start(tmp_path)
    yield process, child
    stop(process, 1.0)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_whole_group_is_stopped(started: tuple[Process, int]) -> None:
    process, child = started
    assert is_alive(process)
    assert {member.pid for member in members(process)} == {process.pid, child}
    assert stop(process, 5.0)
    assert gone(process.pid)
    assert gone(child)
    assert not is_alive(process)
    assert not stop(process, 1.0)


def test_what_ignores_a_polite_request_is_killed(tmp_path: Path) -> None:
    process, child = start(tmp_path, stubborn=True)
    began = time.monotonic()
    assert stop(process, 0.5)
    assert time.monotonic() - began >= 0.5
    assert gone(process.pid)
    assert gone(child)


def test_children_without_their_leader_are_found_by_their_mark(started: tuple[Process, int]) -> None:
    process, child = started
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: gone(process.pid))
    assert not is_alive(process)
    assert [member.pid for member in members(process)] == [child]
    assert stop(process, 5.0)
    assert gone(child)


def test_a_process_is_known_after_the_clock_was_set(started: tuple[Process, int]) -> None:
    """The start time that psutil reports is the time of the boot, which moves with the clock, and ticks since then."""
    process, child = started
    for hours in (6, -6):
        after = process.model_copy(update={"started_at": process.started_at + hours * 3600})
        assert is_alive(after) and {member.pid for member in members(after)} == {process.pid, child}
    assert stop(after, 5.0)
    assert gone(process.pid) and gone(child)


def test_a_stranger_with_the_same_id_is_left_alone(started: tuple[Process, int]) -> None:
    process, child = started
    reused = process.model_copy(update={"started_at": process.started_at - 100, "mark": "of another time"})
    assert not is_alive(reused)
    assert not stop(reused, 0.5)
    assert is_alive(process)
    assert not gone(child)


def test_a_stranger_in_the_same_session_of_ids_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as stranger:
        recorded = Process(pid=stranger.pid, started_at=1.0, mark="ours")
        assert members(recorded) == []
        assert stranger.poll() is None
        stranger.kill()


def test_a_busy_port_is_seen_and_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
        chosen = choose_port("127.0.0.1", port)
        assert chosen > port
        assert choose_port("127.0.0.1", port, [chosen]) not in (port, chosen)


def test_no_free_port_says_how_to_name_one() -> None:
    with pytest.raises(StackError, match="RLHF_PREFECT_PORT"):
        choose_port("127.0.0.1", 65535, [65535])
