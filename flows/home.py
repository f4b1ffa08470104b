"""The home directory of the stack and of the stages' outputs."""

import os
from pathlib import Path

from alignment.errors import ConfigError

LONGEST_BYTES = 450  # SQLite opens files with paths below 512, also journals with longer names


def home_directory(home: Path | None = None) -> Path:
    """The home of the stack: the argument, else RLHF_HOME, else `.rlhf` in the working directory.

    Raises ConfigError for a path that cannot be a directory of ours.
    """
    named = home or Path(os.environ.get("RLHF_HOME") or ".rlhf")
    try:
        path = named.expanduser().resolve(strict=False)
        nearest = next(parent for parent in (path, *path.parents) if _exists(parent))
        if len(os.fsencode(path)) > LONGEST_BYTES:
            problem = f"it has more than {LONGEST_BYTES} bytes, with which SQLite cannot open the databases in it"
        elif not nearest.is_dir():
            problem = f"{nearest} is not a directory"
        elif nearest.is_relative_to("/proc") or nearest.is_relative_to("/sys"):
            problem = f"nothing can be written in {nearest}"
        else:
            return path
    except (OSError, RuntimeError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise ConfigError(
        f"the home {str(named)[:200]} cannot be used ({problem}): set RLHF_HOME or --home to a directory, which may be "
        "new"
    )


def _exists(path: Path) -> bool:
    """Whether anything has this path. Unlike `Path.exists` it raises for a name that is too long or a loop."""
    try:
        path.lstat()
        path.stat()
    except FileNotFoundError:
        return path.is_symlink()
    except NotADirectoryError:
        return False
    return True
