"""The path of a name that comes from outside (a recipe, a backup): always below its root."""

import unicodedata
from pathlib import Path

from alignment.errors import PathError

LONGEST_PART_BYTES = 255


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
