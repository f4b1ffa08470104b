"""Data sets of the hub, and directories that are laid out as one.

The hub's library says which files a split has; those that `alignment.data.files` reads are read one by one. A directory
of texts (`.txt`, `.md`) is a data set for the corpus.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from alignment.data.files import LINES, TABLES, NumberedRow, suffix
from alignment.errors import DataError
from alignment.hub import check_hub_address, hub_read
from alignment.paths import is_directory

MOST_FILES = 100_000  # of a directory
ROWS, TEXTS = (*LINES, ".json", *TABLES, ".parquet"), (".txt", ".md")
WILDCARDS = "*?["


def split_files(directory: Path, name: str, split: str, *, texts: bool = False) -> tuple[list[Path], list[str]]:
    """The files of a split, and the names of the directory's files that it does not have.

    There are none of the split if the library must read it: slices, and formats that `read_file` does not read. With
    `texts`, files of text are among those that it reads.
    """
    import datasets

    check_files(directory)
    present = [str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()]
    prose = texts and _is_prose(file for file in present if not _is_hidden(file))
    try:
        with _without_wildcards(directory) as folder:
            options = {"path": "text", "data_dir": folder} if prose else {"path": folder, "name": name or None}
            builder = datasets.load_dataset_builder(**options)
            files_of_split = (builder.config.data_files or {}).get(split or "train", ())
            names = [os.path.relpath(file, Path(folder).resolve()) for file in files_of_split]
    except Exception as error:  # of the data set's configuration or its files
        raise DataError(_data_set_problem(str(directory), split, error)) from error
    if prose:
        names = [file for file in names if suffix(Path(file)) in TEXTS]
    hidden = [file for file in present if _is_hidden(file) and not (prose and suffix(Path(file)) in TEXTS)]
    unread = sorted({*present} - {*names} - {*hidden})
    files = [directory / file for file in names]
    ours = all(file.is_file() and suffix(file) in ((*ROWS, *TEXTS) if texts else ROWS) for file in files)
    return files if ours else [], unread


def _is_prose(names: Iterable[str]) -> bool:
    """Whether files are texts, some of them Markdown, which the library does not read, and none has rows."""
    endings = {suffix(Path(name)) for name in names}
    return ".md" in endings and not endings & {*ROWS}


@contextmanager
def _without_wildcards(directory: Path) -> Iterator[str]:
    """A path of the directory without the wildcards that the library would take for a pattern: one of links to its
    files, if its own has some."""
    if not set(str(directory.resolve())) & {*WILDCARDS}:
        yield str(directory)
        return
    with TemporaryDirectory() as folder:
        for parent, folders, names in os.walk(directory, followlinks=True):
            folders[:] = [name for name in folders if name[0] not in "._"]
            below = Path(folder) / os.path.relpath(parent, directory)
            below.mkdir(exist_ok=True)
            for name in names:
                (below / name).symlink_to(Path(parent, name).resolve())
        yield folder


def check_files(directory: Path) -> None:
    """Raise DataError for what a library would wait for or read without end: pipes, devices, sockets, circles of links.

    Hidden files are not read.
    """
    count = 0
    for folder, folders, names in os.walk(directory, onerror=_refuse_folder):
        folders[:] = [name for name in folders if name[0] not in "._"]
        count += len(names)
        if count > MOST_FILES:
            raise DataError(f"{directory} has more than {MOST_FILES:,} files: name a directory with the data alone")
        for path in (Path(folder, name) for name in [*names, *folders] if name[0] not in "._"):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}): correct or remove it") from error
            if path.is_symlink() and stat.S_ISDIR(mode) and Path(folder).resolve().is_relative_to(path.resolve()):
                raise DataError(f"{path} is a link to a directory that contains it: remove it")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise DataError(f"{path} is not a file but a pipe, a device or a socket: remove it")


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): correct or remove it") from error


def _is_hidden(file: str) -> bool:
    """Whether a file describes the data set or is hidden, as the hub's library sees it."""
    return Path(file).name in ("README.md", "dataset_infos.json") or any(part[0] in "._" for part in Path(file).parts)


def read_data_set(path: str, name: str, split: str, revision: str) -> Iterator[NumberedRow]:
    """Numbered rows of a data set of the hub, or of a directory that is laid out as one."""
    import datasets

    check_hub_address()
    if is_directory(path):
        check_files(Path(path))
    try:
        if is_directory(path):
            with _without_wildcards(Path(path)) as folder:
                rows = datasets.load_dataset(folder, name or None, split=split or "train")
        else:
            with hub_read(path, DataError, datasets.config):
                rows = datasets.load_dataset(path, name or None, split=split or "train", revision=revision or None)
        yield from ((number, row, "") for number, row in enumerate(rows, start=1))
    except DataError:
        raise
    except Exception as error:  # of the network, the hub, the data set's configuration or its files
        raise DataError(_data_set_problem(path, split, error)) from error


def _data_set_problem(path: str, split: str, error: Exception) -> str:
    what = " ".join(f"{error} {error.__cause__ or ''}".split())[:500] or type(error).__name__
    if "split" in what.lower():
        return f"the data set {path} has no split {split or 'train'!r}: {what}; name one with `split:`"
    if "config name" in what.lower() or "BuilderConfig" in what:
        return f"the data set {path} cannot be read: {what}; name a configuration with `name:`"
    if is_directory(path):
        return f"the data set {path} cannot be read: {what}. Correct its files, or give one of them as the path"
    return (
        f"the data set {path} cannot be read: {what}. Check its name and the network, and log in if it is gated; or "
        "download it elsewhere and give the directory as the path"
    )
