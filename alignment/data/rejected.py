"""Rejected rows: written to a stage's output, and limited to a share of all."""

from collections.abc import Sequence
from pathlib import Path

from alignment.config.base import Share
from alignment.errors import DataError
from alignment.records import Rejected, write_records


def write_rejected(rejected: Sequence[Rejected], good: int, max_share: Share, out: Path, section: str) -> None:
    """Write `rejected.jsonl`. Raises DataError if their share is too large, and if there are no rows.

    `section` of the recipe has the option `max_rejected_share`.
    """
    write_records(out / "rejected.jsonl", rejected)
    total = good + len(rejected)
    if total == 0:
        raise DataError("the sources have no rows: their files are empty, or have a header alone; check their paths")
    if len(rejected) / total > max_share:
        first = rejected[0]
        raise DataError(
            f"{len(rejected)} of {total} rows could not be read, more than the allowed share {max_share:g}. "
            f"First: {first.file} line {first.line}: {first.reason}. All are in {out / 'rejected.jsonl'}. "
            f"Correct the file, or raise `{section}.max_rejected_share`."
        )
