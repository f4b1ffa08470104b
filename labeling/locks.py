"""Locks between processes, for read-modify-write sequences against a server."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Hold the lock `name`, exclusive among all processes and threads of this user on this machine."""
    directory = Path(tempfile.gettempdir()) / f"rlhf-flows-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
