"""Ctrl-C of a command, in its own process: a clean exit, and a quick one when something hangs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background has it ignored
from flows.cli import interrupts
interrupts.GRACE_SECONDS = float(sys.argv[2])
sys.argv[1:] = ["run", "my recipe"]
with interrupts.print_resume_command():
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        print("tidying", flush=True)
        time.sleep({"tidy": 0.0, "hangs": 600.0}[TIDYING])
"""


def begin(tidying: str, grace: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE.replace("TIDYING", repr(tidying)), "-", str(grace)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "working\n"
    return run


@pytest.mark.parametrize(("tidying", "interrupts"), [("tidy", 1), ("hangs", 1), ("hangs", 2)])
def test_ctrl_c_ends_a_command_and_says_how_to_go_on(tidying: str, interrupts: int) -> None:
    run = begin(tidying, 600.0 if tidying == "tidy" or interrupts == 2 else 0.5)
    for number in range(interrupts):
        run.send_signal(signal.SIGINT)
        if number == 0:
            assert run.stdout is not None and run.stdout.readline() == "tidying\n"
    told = run.communicate(timeout=120)[1]
    assert run.returncode == (1 if tidying == "tidy" else 130)  # 1: nobody is here to make 130 of typer's Exit
    assert "stopped; finished stages are kept, and this command resumes it: rlhf run 'my recipe'" in told


def test_it_ends_when_what_happens_at_the_very_end_hangs() -> None:
    late = "import atexit, time; atexit.register(time.sleep, 600)\n"
    command = [sys.executable, "-c", late + CODE.replace("TIDYING", "'tidy'"), "-", "0.5"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as run:
        assert run.stdout is not None and run.stdout.readline() == "working\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130


FLOW = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows import disk
from flows.cli import interrupts
from prefect.utilities.engine import capture_sigterm
sys.argv[1:] = ["run", "town"]
disk.bytes_left = lambda path: {"full": 4096, "free": 10**9}[DISK]
with interrupts.print_resume_command(), capture_sigterm():
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        print("Crashed: as Prefect says", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("disk", ["free", "full"])
def test_sigterm_ends_a_flow_and_the_last_line_says_how_to_go_on(tmp_path: Path, disk: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "RLHF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", FLOW.replace("DISK", repr(disk))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "working\n"
        run.send_signal(signal.SIGTERM)
        lines = run.communicate(timeout=120)[1].splitlines()
    assert run.returncode == 143 and "Crashed: as Prefect says" in lines
    full = (
        f"the disk is full: 4096 bytes are left on the disk of {tmp_path}; free some space. " if disk == "full" else ""
    )
    assert lines[-1] == f"{full}stopped; finished stages are kept, and this command resumes it: rlhf run town"
