"""Backup and restore: all databases and files of a stack in one directory, with a digest of each.

Referring data is copied before the data it refers to: the store of annotations, then the databases (MLflow before Label
Studio), then files, which are written once and appear atomically. So servers and runs can continue meanwhile. A backup
gets its final name when it is complete, and a restored stack does not start before the restore is complete.
"""

import argparse
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from alignment.artifacts import file_digest
from alignment.errors import PathError
from alignment.paths import path_below
from flows.failures import is_full
from flows.home import home_directory
from flows.operations.dumps import Databases, dump_databases
from flows.operations.encryption import SALT_BYTES, encrypt_file, password_key
from flows.operations.manifest import KEY_FILE, Manifest, ensure_key, is_included, write_manifest
from flows.stack import credentials, postgres, stack, state
from flows.stack.processes import StackError

PASSWORD = "RLHF_BACKUP_PASSWORD"
ORDER = ("annotations.db", "prefect.db", "mlflow.db", "label_studio.sqlite3")  # SQLite; others are copied first


def environment_password() -> str:
    """The password of encrypted backups in the environment. Raises StackError if it is not set."""
    password = os.environ.get(PASSWORD, "")
    if not password:
        raise StackError(f"the backup is encrypted: set {PASSWORD} to its password")
    return password


def backup(
    out: Path, home: Path | None = None, *, key: Path | None = None, password: Callable[[], str] | None = None
) -> Manifest:
    """Copy the stack in `home` to `out`, which must not exist; encrypted, if there is a password.

    The manifest is signed with the key in `key`, by default `backup.key` of the home, created if there is none.
    Raises StackError, also when a production stack's database is not running.
    """
    home = home_directory(home)
    known = credentials.read(home)
    if known is None:
        raise StackError(f"there is no stack in {home}: set its home with --home or RLHF_HOME")
    remembered = state.read(home)
    databases = None
    if remembered.profile == "production":
        site = stack.connect(home, ["postgres"]).site
        databases = Databases(address=site.addresses["postgres"], passwords=site.credentials.secrets.databases)
    return dump(home, out.expanduser().resolve(), databases, remembered, key, password)


def dump(
    home: Path,
    out: Path,
    databases: Databases | None,
    remembered: state.State,
    key: Path | None = None,
    password: Callable[[], str] | None = None,
) -> Manifest:
    """Write a complete backup; PostgreSQL's databases are dumped if given. Raises StackError."""
    if out.exists() or out.is_relative_to(home):
        raise StackError(f"{out} {'exists already' if out.exists() else f'is inside {home}'}: choose another directory")
    partial = out.with_name(out.name + ".partial")
    try:
        secret = ensure_key(home / KEY_FILE if key is None else key)
        shutil.rmtree(partial, ignore_errors=True)  # of a backup that was killed
        partial.mkdir(parents=True, mode=0o700)
        links, notes = _copy_home(home, partial)
        if databases is not None:
            (partial / "databases").mkdir(mode=0o700)
            dump_databases(databases, partial / "databases")
        salt = b"" if password is None else _encrypt(partial, password())
        names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        manifest = Manifest(
            made_at=datetime.now(UTC).replace(microsecond=0),
            profile=remembered.profile,
            workers=remembered.workers,
            files={name: file_digest(partial / name) for name in names},
            sizes={name: (partial / name).stat().st_size for name in names},
            links=links,
            salt=salt.hex(),
            notes=notes,
        )
        os.sync()
        write_manifest(partial, manifest, secret)
        partial.rename(out)
    except (OSError, sqlite3.Error) as error:
        shutil.rmtree(partial, ignore_errors=True)
        advice = ": free some space on its disk, or choose another" if is_full(error) else ""
        raise StackError(f"{out} was not made, and nothing of it is left ({error}){advice}") from error
    return manifest


def _copy_home(home: Path, partial: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Copy databases first, then files; returns the links, and what was left out or is damaged."""
    notes: list[str] = []
    paths = [path for path in _files_to_copy(home) if not path.is_symlink() and _has_good_name(home, path)]
    sqlite_files = sorted(
        filter(_is_sqlite, paths), key=lambda path: ORDER.index(path.name) if path.name in ORDER else -1
    )
    for path in sqlite_files:
        target = _with_parent(partial / "home" / path.relative_to(home))
        try:
            _copy_sqlite(path, target)
        except sqlite3.DatabaseError as error:
            if is_full(error) or isinstance(error, sqlite3.OperationalError):
                raise
            _copy(path, target)
            notes.append(f"{path} is damaged ({error}) and was copied as it is")
    links = {}
    for path in _files_to_copy(home):
        name = str(path.relative_to(home))
        if not _has_good_name(home, path):
            notes.append(f"{str(path)!r} was left out: its name cannot be restored safely, rename it")
        elif path.is_symlink():
            target_name = _link_target(home, path)
            if target_name is None:
                notes.append(f"{path} was left out: the link leads out of the home, back up its target separately")
            else:
                links[name] = target_name
        elif not _is_sqlite(path):
            _copy(path, _with_parent(partial / "home" / name))
    return links, tuple(notes)


def _files_to_copy(home: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(home):
        names[:] = sorted(name for name in names if is_included(os.path.relpath(Path(directory, name), home)))
        entries = [Path(directory, name) for name in (*files, *names)]
        yield from sorted(
            path
            for path in entries
            if is_included(str(path.relative_to(home))) and (path.is_symlink() or path.is_file())
        )


def _has_good_name(home: Path, path: Path) -> bool:
    try:
        path_below(home, str(path.relative_to(home)))
    except PathError:
        return False
    return True


def _link_target(home: Path, path: Path) -> str | None:
    """Where a link leads, relative to its directory; None for a link that leads out of the home."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return None
    return os.path.relpath(target, path.parent) if target.is_relative_to(home) else None


def _with_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _copy(path: Path, target: Path) -> None:
    try:
        shutil.copy2(path, target)
    except FileNotFoundError:
        if path.exists():
            raise
        target.unlink(missing_ok=True)  # removed meanwhile: same as if removed before the backup


def _is_sqlite(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _copy_sqlite(path: Path, target: Path) -> None:
    """A consistent snapshot of a database that may be in use."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _encrypt(partial: Path, password: str) -> bytes:
    """Encrypt every file of a backup; returns the salt of the password."""
    salt = os.urandom(SALT_BYTES)
    key = password_key(password, salt)
    for path in [path for path in partial.rglob("*") if path.is_file()]:
        encrypt_file(path, key, str(path.relative_to(partial)))
    return salt


def main() -> None:
    """`python -m flows.operations.backup dump|restore DIRECTORY`, for containers: RLHF_HOME, PGHOST, passwords."""
    from flows.operations.restore import restore

    parser = argparse.ArgumentParser(prog="python -m flows.operations.backup")
    parser.add_argument("action", choices=["dump", "restore"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--key", type=Path, help=f"file with the key; {KEY_FILE} in the home by default for a dump")
    parser.add_argument("--trust", action="store_true", help="restore a backup without checking who made it")
    options = parser.parse_args()
    address = f"{os.environ['PGHOST']}:{os.environ.get('PGPORT', '5432')}"
    databases = Databases(address=address, passwords=postgres.passwords_from(os.environ))
    if options.action == "dump":
        home = home_directory()
        manifest = dump(home, options.directory, databases, state.State(profile="production"), options.key)
    else:
        manifest = restore(options.directory, key=options.key, trust=options.trust, databases=databases)
    print(f"{options.action}: {len(manifest.files)} files of {manifest.made_at}")
    print("".join(f"note: {line}\n" for line in manifest.notes), end="")


if __name__ == "__main__":
    main()
