"""Locks on outputs: who makes one holds `home/locks/NAME.lock`, and a lock that was left behind by nobody can go."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

FOLDER = "locks"


def open_lock(home: Path, name: str) -> TextIO:
    """The file of a lock, open and not held yet."""
    path = home / FOLDER / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")


@contextmanager
def try_lock(home: Path, name: str) -> Iterator[bool]:
    """Hold a lock if it is free; yields whether it is. "" is nobody's and always free."""
    if not name:
        yield True
        return
    with open_lock(home, name) as file:
        yield take(file)


def take(file: TextIO) -> bool:
    """Take a lock without waiting; False when somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_current(file: TextIO) -> bool:
    """Whether the lock that is held is still the one that others find: `rlhf gc` may have removed its file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    except FileNotFoundError:
        return False


def held_locks(home: Path) -> frozenset[str]:
    """The names of all locks that somebody holds at the moment."""
    found = set()
    for path in (home / FOLDER).glob("*.lock"):
        with path.open() as file:
            if not take(file):
                found.add(path.stem)
    return frozenset(found)
