"""The home directory of the stack and of the stages' outputs: which it is, and that no other account enters it."""

import os
import stat
from pathlib import Path

from alignment.errors import ConfigError

PRIVATE_UMASK = 0o077
OTHERS, TRAVERSED = 0o077, 0o710  # PostgreSQL's account, in the home's group, passes through a home of root
STATE = "stack.json"
LONGEST_BYTES = 450  # SQLite opens files with paths below 512, also journals with longer names
NOT_IN_ADDRESSES = frozenset("?#%")


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
        elif special := sorted(set(str(path)) & NOT_IN_ADDRESSES):
            problem = f"{special[0]!r} in its path has a meaning of its own in the addresses of SQLite databases"
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


def keep_files_private() -> None:
    """Let this process and its children create files that no other account can read, whatever the umask was."""
    os.umask(PRIVATE_UMASK)


def create_home(home: Path) -> str:
    """Create a home that only its owner can enter; one that others could enter is closed. Returns a note on it."""
    missing = [parent for parent in home.parents if not parent.exists()]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for parent in missing:  # directories that the user named on the way to the home are not private
        parent.chmod(0o755)
    mode = stat.S_IMODE(home.stat().st_mode)
    if not open_to_others(home) or not _may_close(home):
        return ""
    home.chmod(mode & _most(home))
    return f"other accounts could enter {home} (mode {mode:o}); it has mode {mode & _most(home):o} now"


def open_to_others(home: Path) -> bool:
    """Whether other accounts may enter the home."""
    return home.is_dir() and bool(stat.S_IMODE(home.stat().st_mode) & OTHERS & ~_most(home))


def _most(home: Path) -> int:
    """The widest mode of a home: a database that runs as another account is reached through it."""
    database = home / "postgres"
    return TRAVERSED if database.is_dir() and database.stat().st_uid != home.stat().st_uid else 0o700


def _may_close(home: Path) -> bool:
    """Whether a directory is ours and holds a home, or nothing: never the file system's root, one that all accounts
    write to, or the account's own."""
    status = home.stat()
    shared = status.st_mode & stat.S_ISVTX or home in (Path("/"), Path.home())
    return status.st_uid == os.geteuid() and not shared and ((home / STATE).exists() or not any(home.iterdir()))
