"""Locks on outputs: a process that produces one holds `home/locks/NAME.lock`. Stale lock files can be removed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

FOLDER = "locks"


def open_lock(home: Path, name: str) -> TextIO:
    """Open the file of a lock without taking the lock."""
    path = home / FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")


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
