"""Paths that come from outside (a recipe, a command line, a backup): names stay below their root, and a path that
cannot be looked up is an error in words."""

import errno
import os
import stat
import unicodedata
from pathlib import Path

from alignment.errors import PathError

NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR}

LONGEST_PART_BYTES = 255


def exists(path: str | Path) -> bool:
    """Whether anything has this path. Raises PathError for one that cannot be looked up."""
    return _mode(path) is not None


def is_file(path: str | Path) -> bool:
    """Whether this is the path of a regular file. Raises PathError for one that cannot be looked up."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_directory(path: str | Path) -> bool:
    """Whether this is the path of a directory. Raises PathError for one that cannot be looked up."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_mode  # noqa: PTH116 - Path("") is the working directory
    except (OSError, ValueError) as error:  # no right to look, a name that is too long, a null character
        if isinstance(error, OSError) and error.errno in NOTHING_THERE:
            return None
        reason = getattr(error, "strerror", None) or error
        raise PathError(f"{str(path)[:200]!r} cannot be looked up ({reason}); give the path of a file") from error


def path_below(root: Path, name: str) -> Path:
    """The path of `name` below `root`, with / between its parts.

    Raises PathError for a name that is absolute, leads up (`..`), or holds an empty part, a backslash or a character
    that no file name should have. Links below the root are not resolved: who can create them decides where they lead.
    """
    problem = _problem(name)
    if problem:
        raise PathError(f"{name[:200]!r} {problem}")
    return root / name


def _problem(name: str) -> str:
    """What is wrong with a name; "" for a good one."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or not name:
        return "leads out of its directory"
    if "" in parts or "." in parts:
        return "has an empty part or '.'"
    if "\\" in name or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a backslash, a control character or half a character"
    if any(len(part.encode()) > LONGEST_PART_BYTES for part in parts):
        return f"has a part of more than {LONGEST_PART_BYTES} bytes"
    return ""
