"""The manifest of a backup: what is in it, its signature, and the checks before anything of it is used.

A backup is a directory that may come from anywhere. Its manifest is signed with HMAC-SHA256, with the key in
`backup.key` of the home that it was made from. The key is in no backup.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from alignment.artifacts import PRIVATE, write_text
from alignment.errors import PathError
from alignment.paths import path_below
from alignment.records import Record
from flows.operations.dumps import DUMPED
from flows.stack import state
from flows.stack.processes import StackError
from flows.stack.services import Profile

FILE, SIGNATURE, KEY_FILE = "manifest.json", "manifest.hmac", "backup.key"
LONGEST_BYTES = 256 << 20  # of a manifest
LONGEST_NAME = 4096  # PATH_MAX
EXCLUDED = ("logs", "locks", "postgres", state.FILE, state.UNFINISHED, KEY_FILE)  # at the top of a home
TRANSIENT_SUFFIXES = (  # files that are still being written, and locks
    ".partial",
    ".download",
    ".lock",
    "-wal",
    "-shm",
    "-journal",
)


class Manifest(Record):
    """Contents of a backup: digests (SHA-256) and sizes by path below the backup, and links by path below the home.

    `salt` is that of the password of an encrypted backup. `notes` say what was left out or is damaged.
    """

    made_at: datetime
    profile: Profile
    workers: bool
    files: dict[str, str]
    links: dict[str, str]
    sizes: dict[str, int] = Field(default_factory=dict)
    salt: str = ""
    notes: tuple[str, ...] = ()


def is_included(name: str) -> bool:
    """Whether a path below a home belongs into backups."""
    parts = PurePosixPath(name).parts
    return parts[0].casefold() not in EXCLUDED and not any(part.endswith(TRANSIENT_SUFFIXES) for part in parts)


# --- the key and the signature ----------------------------------------------------------------------------------------


def ensure_key(path: Path) -> bytes:
    """The key in a file that only its owner can read, created if there is none. Raises StackError."""
    if not path.exists():
        write_text(path, secrets.token_hex(32) + "\n", PRIVATE)
    return read_key(path)


def read_key(path: Path) -> bytes:
    """The key in a file. Raises StackError if there is none."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(100).strip()
    except (OSError, ValueError) as error:
        raise StackError(f"the key {path} cannot be read ({error}): name the file {KEY_FILE} of a home") from error
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise StackError(f"{path} is not the key of a backup: name the file {KEY_FILE} of the home it was made from")
    return bytes.fromhex(text)


def sign(content: bytes, key: bytes) -> str:
    """The signature of a manifest."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def write_manifest(directory: Path, manifest: Manifest, key: bytes) -> None:
    """Write the manifest of a backup and its signature."""
    content = manifest.model_dump_json(indent=1) + "\n"
    write_text(directory / SIGNATURE, sign(content.encode(), key) + "\n", PRIVATE)
    write_text(directory / FILE, content, PRIVATE)


def read_manifest(source: Path, key: bytes | None) -> Manifest:
    """Check the names, links and sizes of a backup and return its manifest. Raises StackError.

    Without a key the signature is not checked: the caller trusts whoever made the backup. Digests are checked when the
    files are copied.
    """
    content = _content(source / FILE)
    if key is not None:
        _check_signature(source, content, key)
    try:
        manifest = Manifest.model_validate(json.loads(content, object_pairs_hook=_once))
    except (ValueError, ValidationError, RecursionError) as error:
        reason = "" if isinstance(error, ValidationError | RecursionError) else f" ({error})"
        raise StackError(f"{source} is not a complete backup: it has no readable {FILE}{reason}") from error
    problem = _names_problem(manifest) or _links_problem(manifest)
    if problem:
        raise StackError(f"{source} is not a backup that can be restored: {problem}. Nothing was written")
    _check_files(source, manifest)
    return manifest


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=open_plain) as file:
            content = file.read(LONGEST_BYTES + 1)
    except OSError as error:
        raise StackError(f"{path.parent} is not a complete backup: it has no readable {FILE} ({error})") from error
    if len(content) > LONGEST_BYTES:
        raise StackError(f"{path} has more than {LONGEST_BYTES >> 20} MiB, and no backup's manifest is so large")
    return content


def open_plain(path: str, flags: int) -> int:
    """An opener for regular files only: follows no link, and does not wait for a FIFO. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def _check_signature(source: Path, content: bytes, key: bytes) -> None:
    try:
        with open(source / SIGNATURE, "rb", opener=open_plain) as file:
            signature = file.read(100).strip()
    except FileNotFoundError as error:
        raise StackError(
            f"{source} has no signature ({SIGNATURE}): restore it with --trust if you know who made it and where it "
            "was kept since"
        ) from error
    except OSError as error:
        raise StackError(f"the signature of {source} cannot be read ({error})") from error
    if not hmac.compare_digest(signature, sign(content, key).encode()):
        raise StackError(
            f"the signature of {source} does not fit this key: the backup was changed, or belongs to another home. "
            f"Name the file {KEY_FILE} of the home that it was made from with --key"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON in which no name is there twice. Raises ValueError."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:200]!r} is there twice")
        values[name] = value
    return values


# --- names, links and files -------------------------------------------------------------------------------------------


def _names_problem(manifest: Manifest) -> str:
    """What is wrong with the names of a manifest; "" if they are those of a backup."""
    names = [*manifest.files, *(f"home/{name}" for name in manifest.links)]
    for name in names:
        if len(name) > LONGEST_NAME:
            return f"{name[:200]!r} has {len(name):,} characters, more than the path of a file"
        try:
            path_below(Path(), name)
        except PathError as error:
            return str(error)
        top, _, rest = name.partition("/")
        dumps = [f"{database}.dump" for database in DUMPED]
        if not rest or (top != "home" and not (top == "databases" and rest in dumps)):
            return f"{name!r} is neither a file of a home nor a dump of a database"
        if top == "home" and not is_included(rest):
            return f"{name!r} does not belong into a backup"
    if twice := set(manifest.files) & {f"home/{name}" for name in manifest.links}:
        return f"{min(twice)!r} is both a file and a link"
    ordered = sorted(name.replace("/", "\0") for name in names)  # what is in a directory follows its name
    if inside := [name for name, after in pairwise(ordered) if after.startswith(f"{name}\0")]:
        return f"{inside[0].replace(chr(0), '/')!r} is both a directory and a file or link"
    if bad := next((name for name, digest in manifest.files.items() if not re.fullmatch("[0-9a-f]{64}", digest)), None):
        return f"{bad!r} has no SHA-256 digest"
    if not re.fullmatch(r"([0-9a-f]{32})?", manifest.salt):
        return "its salt is not 16 bytes"
    missing = [name for name in DUMPED if f"databases/{name}.dump" not in manifest.files]
    return f"the dump of {missing[0]} is missing" if manifest.profile == "production" and missing else ""


def _links_problem(manifest: Manifest) -> str:
    """What is wrong with the links of a manifest; "" if all stay below the home.

    A target goes up first and then down, with no `..` after a name, which could be another link.
    """
    for name, target in manifest.links.items():
        joined = os.path.normpath(f"{PurePosixPath(name).parent}/{target}")
        plain = (
            len(target) <= LONGEST_NAME
            and "\0" not in target
            and target == os.path.normpath(target)
            and not target.startswith("/")
        )
        if not plain or target.startswith("/") or joined.split("/")[0] == "..":
            return f"the link {name!r} leads out of the home, to {target[:200]!r}"
    return ""


def _check_files(source: Path, manifest: Manifest) -> None:
    """Check that the files of a backup are those of its manifest, of their sizes. Raises StackError for the first."""
    present = set()
    for path, mode, size in _walk(source):
        name = str(path.relative_to(source))
        if not stat.S_ISREG(mode):
            raise StackError(
                f"{str(path)!r} is a link, a device or a pipe, which no backup contains. Nothing was written"
            )
        if name in (FILE, SIGNATURE):
            continue
        if name not in manifest.files:
            raise StackError(f"{str(path)!r} is not in {FILE}: remove it if you put it there. Nothing was written")
        if size != manifest.sizes.get(name, size):
            raise StackError(f"{path} is missing or was changed: use another backup. Nothing was written")
        present.add(name)
    if missing := manifest.files.keys() - present:
        raise StackError(f"{source / min(missing)} is missing or was changed: use another backup. Nothing was written")


def _walk(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Everything below a directory that is no directory itself, with mode and size. Follows no link."""
    directories = [directory]
    while directories:
        for entry in os.scandir(directories.pop()):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                directories.append(Path(entry.path))
            else:
                yield Path(entry.path), status.st_mode, status.st_size
