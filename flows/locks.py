"""Locks on outputs: a process that produces one holds `home/locks/NAME.lock`. Stale lock files can be removed.

Their files are for their owner alone: whoever can open one can hold it.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

FOLDER = "locks"
SILENT_SECONDS, POLL_SECONDS = 2.0, 0.05


def open_lock(home: Path, name: str) -> TextIO:
    """Open the file of a lock without taking the lock."""
    path = home / FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return open_private(path)


def open_private(path: Path) -> TextIO:
    """Open a lock file for writing, created or changed so that only its owner can open it."""
    file = open(path, "w", opener=_open_private)  # noqa: SIM115 - the caller closes it
    status = os.fstat(file.fileno())
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        os.fchmod(file.fileno(), 0o600)
    return file


def _open_private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW, 0o600)


@contextmanager
def try_lock(home: Path, name: str) -> Iterator[bool]:
    """Hold a lock if it is free; yields whether it was. "" names no lock and is always free."""
    if not name:
        yield True
        return
    with open_lock(home, name) as file:
        yield take(file)


def take(file: TextIO) -> bool:
    """Take a lock without waiting; False when another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for(file: TextIO, note: Callable[[str], None]) -> None:
    """Take a lock, waiting as long as another process holds it; after two seconds `note` gets a text that says who."""
    deadline = time.monotonic() + SILENT_SECONDS
    while not take(file):
        if time.monotonic() > deadline:
            note(holder(file))
            fcntl.flock(file, fcntl.LOCK_EX)
            return
        time.sleep(POLL_SECONDS)


def holder(file: TextIO) -> str:
    """The process that holds a lock, as far as the kernel says; else "another process"."""
    status = os.fstat(file.fileno())
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        pid = next(int(words[4]) for words in map(str.split, lines) if words[1] == "FLOCK" and words[5] == where)
        process = psutil.Process(pid)
        return f"process {pid} ({process.name()}, of the user {process.username()})"
    except (OSError, StopIteration, ValueError, IndexError, psutil.Error):
        return "another process"


def is_current(file: TextIO) -> bool:
    """Whether the held lock's file is still the one on disk: `rlhf gc` may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    except FileNotFoundError:
        return False


def held_locks(home: Path) -> frozenset[str]:
    """The names of all locks that are currently held."""
    held = set()
    for path in (home / FOLDER).glob("*.lock"):
        with path.open() as file:
            if not take(file):
                held.add(path.stem)
    return frozenset(held)
