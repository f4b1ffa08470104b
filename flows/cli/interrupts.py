"""Ctrl-C ends a run within seconds, also while a server does not answer, and prints the command that resumes it."""

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

STOPPED = 130  # the shell's code of a command that Ctrl-C ended
GRACE_SECONDS = 11.0  # to update the run's state on the servers


@contextmanager
def print_resume_command() -> Iterator[None]:
    """On Ctrl-C, print the command that resumes the run. No finished work is lost.

    The run is marked as stopped on the servers. If that takes longer than GRACE_SECONDS, or at a second Ctrl-C, the
    process exits at once, and with it the processes it launched (`alignment.distributed.parent_death`): its runs stay
    RUNNING in MLflow, and the same command resumes them.
    """
    before = signal.getsignal(signal.SIGINT)
    handled = before not in (signal.SIG_IGN, None) and threading.current_thread() is threading.main_thread()
    timer = threading.Timer(GRACE_SECONDS, _exit)
    timer.daemon = True
    if handled:
        signal.signal(signal.SIGINT, lambda number, frame: _interrupt(timer, number, frame))
    try:
        yield
    except KeyboardInterrupt:
        echo(_message(), err=True, lines=True)
        raise typer.Exit(STOPPED) from None
    finally:  # the timer keeps running: a library's clean-up at exit may hang as well
        if handled:
            signal.signal(signal.SIGINT, before)


def _interrupt(timer: threading.Timer, number: int, frame: FrameType | None) -> None:
    if timer.ident is not None:
        _exit()
    timer.start()
    signal.default_int_handler(number, frame)


def _exit() -> None:
    os.write(sys.stderr.fileno(), f"{_message()}\n".encode())  # unbuffered: another thread may hold the buffer's lock
    os._exit(STOPPED)


def _message() -> str:
    command = shlex.join(["rlhf", *sys.argv[1:]])
    return f"\nstopped; finished stages are kept, and this command resumes it: {command}"
