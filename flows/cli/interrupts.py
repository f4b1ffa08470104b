"""Ctrl-C: a run ends, says with which command it goes on, and is gone soon even when a server keeps it waiting."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

STOPPED = 130  # the shell's code of a command that Ctrl-C ended
GRACE_SECONDS = 11.0  # to tell the servers; a limit of 15 leaves some for a busy machine


@contextmanager
def said_how_to_go_on() -> Iterator[None]:
    """Ctrl-C ends a run and loses nothing: say with which command it goes on.

    The servers are told that it was stopped. A process that is not through with that after GRACE_SECONDS, or that hears
    a second Ctrl-C, ends at once, and with it the processes it launched (`alignment.distributed.parent_death`): its
    runs stay RUNNING in MLflow, and the same command goes on with them.
    """
    before = signal.getsignal(signal.SIGINT)
    heard = before not in (signal.SIG_IGN, None) and threading.current_thread() is threading.main_thread()
    waiting = threading.Timer(GRACE_SECONDS, _end)
    waiting.daemon = True
    if heard:
        signal.signal(signal.SIGINT, lambda number, frame: _interrupt(waiting, number, frame))
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(_told(), err=True)
        raise typer.Exit(STOPPED) from None
    finally:  # the timer goes on: what a library does when the process ends may hang as well
        if heard:
            signal.signal(signal.SIGINT, before)


def _interrupt(waiting: threading.Timer, number: int, frame: FrameType | None) -> None:
    if waiting.ident is not None:
        _end()
    waiting.start()
    signal.default_int_handler(number, frame)


def _end() -> None:
    os.write(sys.stderr.fileno(), f"{_told()}\n".encode())  # not through a buffer that somebody may hold
    os._exit(STOPPED)


def _told() -> str:
    command = shlex.join(["rlhf", *sys.argv[1:]])
    return f"\nstopped; finished stages are kept, and this command goes on: {command}"
