"""Ctrl-C and SIGTERM end a run within seconds, also while a server does not answer, and print the command that resumes
it."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from flows.console import echo
from flows.disk import disk_shown, home_or_here, nearly_full

STOPPED, TERMINATED = 130, 143  # the shell's codes of a command that Ctrl-C or SIGTERM ended
GRACE_SECONDS = 11.0  # to update the run's state on the servers


@contextmanager
def print_resume_command() -> Iterator[None]:
    """On Ctrl-C, print the command that resumes the run. No finished work is lost.

    The run is marked as stopped on the servers. If that takes longer than GRACE_SECONDS, or at a second Ctrl-C, the
    process exits at once, and with it the processes it launched (`alignment.distributed.parent_death`): its runs stay
    RUNNING in MLflow, and the same command resumes them. On SIGTERM Prefect marks the run and then sends the signal
    again, to the handler that is set here.
    """
    before, before_term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    handled = before not in (signal.SIG_IGN, None) and threading.current_thread() is threading.main_thread()
    timer = threading.Timer(GRACE_SECONDS, _exit)
    timer.daemon = True
    if handled:
        signal.signal(signal.SIGINT, lambda number, frame: _interrupt(timer, number, frame))
        signal.signal(signal.SIGTERM, lambda number, frame: _exit(TERMINATED))
    try:
        yield
    except KeyboardInterrupt:
        echo(_message(), err=True, lines=True)
        raise typer.Exit(STOPPED) from None
    finally:  # the timer keeps running: a library's clean-up at exit may hang as well
        if handled:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, before_term)


def _interrupt(timer: threading.Timer, number: int, frame: FrameType | None) -> None:
    if timer.ident is not None:
        _exit()
    timer.start()
    signal.default_int_handler(number, frame)


def _exit(code: int = STOPPED) -> None:
    os.write(sys.stderr.fileno(), f"{_message()}\n".encode())  # unbuffered: another thread may hold the buffer's lock
    os._exit(code)


def _message() -> str:
    command = shlex.join(["rlhf", *sys.argv[1:]])
    disk = f"the disk is full: {disk_shown(home_or_here())}; free some space. " if nearly_full(home_or_here()) else ""
    return f"\n{disk}stopped; finished stages are kept, and this command resumes it: {command}"
