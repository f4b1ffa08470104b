"""Locks between processes, for read-modify-write sequences against a server."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labeling.errors import LabelingError


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Hold the lock `name`, exclusive among all processes and threads of this user on this machine."""
    directory = Path(tempfile.gettempdir()) / f"rlhf-flows-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_owner(directory)
    path = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_owner(directory: Path) -> None:
    """Raise LabelingError for a directory of another account, which could hold or redirect the locks."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise LabelingError(
            f"{directory}, for locks, is no directory that this account alone can write to: remove it, or set TMPDIR "
            "to another directory"
        )
