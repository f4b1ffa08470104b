"""How much is left on a disk, and the errors of a machine that stops a command."""

import shutil
from pathlib import Path

from alignment.errors import ConfigError, RLHFError
from flows.home import home_directory

NEARLY_FULL_BYTES = 8 << 20  # servers cannot write to their databases with less, whatever they answer then


class MachineFault(RLHFError):
    """A command that was stopped by the machine: a full disk, a directory without permission, too many open files."""


def full_disk(path: Path, cause: str) -> MachineFault:
    """The error of a full disk that is seen at `path`, with what was seen first."""
    return MachineFault(
        f"the disk is full: {disk_shown(path)} ({cause}). Finished stages, checkpoints and judgements are kept. Free "
        "some space there; `rlhf up` starts servers that ended, and the same command goes on"
    )


def check_disk(path: Path) -> None:
    """Raise MachineFault if so little is left on the disk of a path that servers fail: nothing is started then."""
    if nearly_full(path):
        raise full_disk(path, f"nothing was started, which needs {NEARLY_FULL_BYTES >> 20} MiB")


def nearly_full(path: Path) -> bool:
    """Whether so little is left on the disk of a path that servers fail."""
    return bytes_left(path) < NEARLY_FULL_BYTES


def bytes_left(path: Path) -> int:
    """Bytes that are free on the disk of a directory, or of the nearest existing one above."""
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free


def disk_shown(path: Path) -> str:
    """How much is left where, for messages."""
    left = bytes_left(path)
    shown = (
        f"{left} bytes" if left < 10_000 else f"{left / 1e3:,.0f} kB" if left < 10_000_000 else f"{left / 1e6:,.0f} MB"
    )
    return f"{shown} are left on the disk of {path}"


def home_or_here() -> Path:
    """The home or the nearest existing directory above, and the working directory if the home cannot be one."""
    try:
        home = home_directory()
    except ConfigError:
        return Path.cwd()
    return next(path for path in (home, *home.parents) if path.is_dir())
