"""Rejected rows: written to a stage's output, and limited to a share of all."""

from collections.abc import Sequence
from pathlib import Path

from alignment.config.base import Share
from alignment.errors import DataError
from alignment.records import Rejected, as_line, write_records


class RejectedFile:
    """The rejected rows of a stage, written to its file one by one."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._first: Rejected | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def add(self, row: Rejected) -> None:
        """Write a row."""
        self._first = self._first or row
        self.count += 1
        with self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(row) + "\n")

    def check(self, good: int, max_share: Share, section: str) -> None:
        """Raise DataError if the share of rejected rows is too large, and if there are no rows."""
        _check(self._first, self.count, good, max_share, self.path, section)


def write_rejected(rejected: Sequence[Rejected], good: int, max_share: Share, out: Path, section: str) -> None:
    """Write `rejected.jsonl`. Raises DataError if their share is too large, and if there are no rows.

    `section` of the recipe has the option `max_rejected_share`.
    """
    write_records(out / "rejected.jsonl", rejected)
    first = rejected[0] if rejected else None
    _check(first, len(rejected), good, max_share, out / "rejected.jsonl", section)


def _check(first: Rejected | None, count: int, good: int, max_share: Share, path: Path, section: str) -> None:
    total = good + count
    if total == 0:
        raise DataError("the sources have no rows: their files are empty, or have a header alone; check their paths")
    if first is not None and count / total > max_share:
        raise DataError(
            f"{count} of {total} rows could not be read, more than the allowed share {max_share:g}. "
            f"First: {first.file} line {first.line}: {first.reason}. All are in {path}. "
            f"Correct the file, or raise `{section}.max_rejected_share`."
        )
