"""How much is left on a disk, and the errors of a machine that stops a command."""

import getpass
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from alignment.errors import ConfigError, RLHFError
from flows.home import home_directory

LOW_BYTES = 5 << 30  # people are told, and `rlhf doctor` complains, with less
NEARLY_FULL_BYTES = 8 << 20  # servers cannot write to their databases with less, whatever they answer then


class MachineFault(RLHFError):
    """A command that was stopped by the machine: a full disk, a directory without permission, too many open files."""


def full_disk(path: Path, cause: str) -> MachineFault:
    """The error of a full disk that is seen at `path`, with what was seen first."""
    return MachineFault(
        f"the disk is full: {disk_shown(path)} ({cause}). Finished stages, checkpoints and judgements are kept. Free "
        "some space there; `rlhf up` starts servers that ended, and the same command goes on"
    )


def denied(path: Path | str, reason: str) -> MachineFault:
    """The error of a file or directory that this account may not use."""
    return MachineFault(
        f"{path} cannot be used by the user {user_name()} ({reason}): change its owner or mode, or choose another home "
        f"with --home or RLHF_HOME (it is {home_or_here()})"
    )


def user_name() -> str:
    """The account of this process; its number where it has no name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def check_disk(path: Path) -> None:
    """Raise MachineFault if a path cannot be written, or so little is left on its disk that servers fail: nothing is
    started then."""
    if not _writable(path):
        raise denied(_existing(path), "it cannot be written")
    if nearly_full(path):
        raise full_disk(path, f"nothing was started, which needs {NEARLY_FULL_BYTES >> 20} MiB")


def nearly_full(path: Path) -> bool:
    """Whether so little is left on the disk of a path that servers fail. A path that cannot be written has another
    fault, however little is left there."""
    return bytes_left(path) < NEARLY_FULL_BYTES and _writable(path)


def _writable(path: Path) -> bool:
    return os.access(_existing(path), os.W_OK)


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def bytes_left(path: Path) -> int:
    """Bytes that are free on the disk of a directory, or of the nearest existing one above."""
    return shutil.disk_usage(_existing(path)).free


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
    return _existing(home)


@contextmanager
def in_background(watch: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `watch(ended)` in a thread with the context's variables. The end of the block sets `ended` and joins it."""
    ended = threading.Event()
    thread = threading.Thread(target=copy_context().run, args=(watch, ended), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
