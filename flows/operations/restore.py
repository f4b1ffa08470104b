"""Restore a backup into an empty home.

Everything is copied to a staging directory beside the home and checked there: digests, links, the password. Only then
it is renamed to the home, so that an interrupted restore leaves the home as it was. Production databases are loaded
after that, and a mark in the home keeps `rlhf up` from starting before they are complete.
"""

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.artifacts import PRIVATE, READ_BYTES, write_text
from flows.home import home_directory
from flows.operations.backup import environment_password
from flows.operations.dumps import Databases, restore_databases
from flows.operations.encryption import decrypt_file, password_key
from flows.operations.manifest import KEY_FILE, Manifest, open_plain, read_key, read_manifest
from flows.stack import stack, state
from flows.stack.processes import StackError

SECRETS = ("credentials.json", "annotators.json")
SAFE_MODES = 0o700  # no setuid, and nothing for other accounts
HOME, DUMPS = "home", "databases"  # directories of a backup


def restore(
    source: Path,
    home: Path | None = None,
    *,
    key: Path | None = None,
    trust: bool = False,
    password: Callable[[], str] = environment_password,
    databases: Databases | None = None,
) -> Manifest:
    """Restore a backup into `home`, which must be empty; `rlhf up` starts the stack.

    `key` is the file with the key that signed it; `trust` accepts one without checking who made it. `databases` is a
    running PostgreSQL to load dumps into; by default a production stack's own is started. Raises StackError, before
    anything in the home changes if the backup is incomplete, changed or not signed.
    """
    home = home_directory(home)
    if (key is None) is not trust:
        raise StackError(
            f"name the key that signed {source} with --key FILE: it is {KEY_FILE} in the home that the backup was made "
            "from, and in no backup. Without it, --trust restores a backup of which you know who made it"
        )
    secret = None if key is None else read_key(key)
    try:
        manifest = read_manifest(source, secret)
        with _staging(home) as staging:
            _copy_all(source, staging, manifest, password)
            _complete(staging / HOME, manifest, secret)
            if databases is not None:
                restore_databases(databases, staging / DUMPS)
            _move(staging / HOME, home)
            if databases is None and manifest.profile == "production":
                restore_databases(_own_databases(home), staging / DUMPS)
            (home / state.UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise StackError(f"{source} was not restored: {error}") from error
    return manifest


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """An empty staging directory, locked, and removed at the end; one that a killed restore left is removed first."""
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = state.staging(home)
    if staging.exists():
        with _locked(staging):
            shutil.rmtree(staging)
    _require_empty(home)
    staging.mkdir(mode=0o700)
    with _locked(staging):
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StackError(f"another restore works in {directory}: wait for it") from error
    finally:
        os.close(descriptor)


def _require_empty(home: Path) -> None:
    entries = home.rglob("*") if home.exists() else ()
    existing = next((path for path in entries if path.is_symlink() or not path.is_dir()), None)
    if existing is not None:
        raise StackError(f"{home} is not empty (it contains {existing.relative_to(home)}): restore into a new home")


def _copy_all(source: Path, staging: Path, manifest: Manifest, password: Callable[[], str]) -> None:
    """Copy the files of a backup to the staging directory, checked and decrypted, and create its links."""
    sizes = {name: (source / name).lstat().st_size for name in manifest.files}
    free = shutil.disk_usage(staging).free
    if sum(sizes.values()) > free:
        needed = sum(sizes.values()) / (1 << 20)
        raise StackError(f"{source} needs {needed:,.0f} MiB, and {free / (1 << 20):,.0f} are free at {staging.parent}")
    key = password_key(password(), bytes.fromhex(manifest.salt)) if manifest.salt else None
    (staging / HOME).mkdir(mode=0o700)
    for name, digest in manifest.files.items():
        _copy(source / name, _with_parent(staging / name), digest, sizes[name])
        if key is not None:
            decrypt_file(staging / name, key, name)
        if name.removeprefix(f"{HOME}/") in SECRETS:
            (staging / name).chmod(PRIVATE)
    for name, target in manifest.links.items():
        _with_parent(staging / HOME / name).symlink_to(target)


def _with_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _copy(source: Path, target: Path, digest: str, size: int) -> None:
    """Copy `size` bytes of a file to a new one. Raises StackError if it has other content, and FileExistsError for a
    name that a file system without upper and lower case has already."""
    hashed, copied = hashlib.sha256(), 0
    with open(source, "rb", opener=open_plain) as file, target.open("xb") as copy:
        while copied <= size and (block := file.read(READ_BYTES)):
            hashed.update(block)
            copied += len(block)
            copy.write(block)
        status = os.fstat(file.fileno())
    if copied != size or hashed.hexdigest() != digest:
        raise StackError(f"{source} is missing or was changed: use another backup. Nothing was restored")
    target.chmod(stat.S_IMODE(status.st_mode) & SAFE_MODES)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _complete(staged: Path, manifest: Manifest, key: bytes | None) -> None:
    """Add the stack's state and its key, and for a production stack the mark of a restore that is not finished."""
    state.write(staged, state.State(profile=manifest.profile, workers=manifest.workers))
    if key is not None:
        write_text(staged / KEY_FILE, key.hex() + "\n", PRIVATE)
    if manifest.profile == "production":
        (staged / state.UNFINISHED).touch()
    os.sync()


def _move(staged: Path, home: Path) -> None:
    """Rename the staged home to its name. Where that is impossible, because the home is or holds the volumes of a
    container, move file by file, under the mark of a restore that is not finished."""
    try:
        staged.rename(home)  # also replaces an empty directory
        return
    except OSError:
        home.mkdir(exist_ok=True, mode=0o700)
        (home / state.UNFINISHED).touch()
    for path in sorted(staged.rglob("*")):
        if path.is_symlink() or path.is_file():
            shutil.move(path, _with_parent(home / path.relative_to(staged)))


def _own_databases(home: Path) -> Databases:
    """Start the PostgreSQL of a production stack."""
    site = stack.up_database(home)
    return Databases(address=site.addresses["postgres"], passwords=site.credentials.secrets.databases)
