"""Rows of Parquet files, with limits on what a small file can expand to.

A dictionary stores a long text once and names it in any number of rows, and pages are compressed: what a batch takes in
memory is bounded before it is read, by the file's own figures and by the size of its dictionaries.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from alignment.bounded import LONGEST_LINE, size_text
from alignment.errors import DataError

BATCH_ROWS = 1024
BATCH_BYTES = 512 << 20
BUFFER_BYTES = 1 << 20  # of a column that are read ahead; without a limit, a whole row group is
LARGEST_CHUNK = 2 << 30  # bytes of a column in a row group, unpacked
MOST_VALUES = 1 << 28  # of a column in a row group
HEADER_BYTES = 32
SMALLER = "write it with smaller row groups (`row_group_size=1000` of pyarrow and pandas)"


def parquet_rows(path: Path, source: BinaryIO) -> Iterator[tuple[int, Any, str]]:
    """Numbered rows, each with the reason why it could not be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(source, buffer_size=BUFFER_BYTES)
        refuse_doubles(path, table.schema_arrow.names)
        number = 0
        for group in range(table.metadata.num_row_groups):
            size = _batch_size(path, source, table.metadata.row_group(group), group)
            for batch in table.iter_batches(batch_size=size, row_groups=[group]):
                for row, reason in _batch_rows(batch):
                    number += 1
                    yield number, row, reason
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{path}: the Parquet file is damaged ({what}); fetch it again") from error


def refuse_doubles(path: Path, names: list[str]) -> None:
    """Raise DataError if two columns have the same name."""
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles:
        raise DataError(f"{path}: several columns are named {doubles[0]!r}; give each a name of its own")


def _batch_size(path: Path, source: BinaryIO, group: Any, number: int) -> int:
    """How many rows of a row group may be read at once. Raises DataError if a column of it is too large."""
    bytes_per_row = 1
    for index in range(group.num_columns):
        column = group.column(index)
        if column.total_uncompressed_size > LARGEST_CHUNK or column.num_values > MOST_VALUES:
            raise DataError(
                f"{path}: row group {number} has {column.num_values:,} values of {column.path_in_schema!r} with "
                f"{size_text(column.total_uncompressed_size)}, above {MOST_VALUES:,} or {size_text(LARGEST_CHUNK)}; "
                f"{SMALLER}"
            )
        bytes_per_row += _dictionary_bytes(source, column) + column.total_uncompressed_size // max(1, group.num_rows)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // bytes_per_row))


def _dictionary_bytes(source: BinaryIO, column: Any) -> int:
    """The size of a column's dictionary, unpacked, from the header of its page: each row may repeat all of it.

    The header is Thrift's compact protocol: the type of the page, then its unpacked size, each a zigzag varint behind
    one byte for field and type (0x15).
    """
    if not column.has_dictionary_page or column.dictionary_page_offset is None:
        return 0
    position = source.tell()
    source.seek(column.dictionary_page_offset)
    header = source.read(HEADER_BYTES)
    source.seek(position)
    _, after = _varint(header, 1)
    size, _ = _varint(header, after + 1)
    return size if header[:1] == header[after : after + 1] == b"\x15" else column.total_uncompressed_size


def _varint(raw: bytes, start: int) -> tuple[int, int]:
    """A zigzag varint and the position after it."""
    value = shift = 0
    for position in range(start, len(raw)):
        value |= (raw[position] & 0x7F) << shift
        shift += 7
        if not raw[position] & 0x80:
            return value >> 1, position + 1
    return 0, len(raw)


def _batch_rows(batch: Any) -> Iterator[tuple[Any, str]]:
    """The rows of a batch; row by row if one may be too long or have no form in Python (text that is not UTF-8)."""
    if batch.nbytes <= LONGEST_LINE:
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError, KeyError):
            pass
        else:
            yield from ((row, "") for row in rows)
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > LONGEST_LINE:
            yield None, f"the row has {size_text(row.nbytes)}, more than {size_text(LONGEST_LINE)}; split it"
            continue
        try:
            yield row.to_pylist()[0], ""
        except (ValueError, OverflowError, KeyError) as error:  # KeyError: an unknown time zone
            yield None, f"a value that cannot be read: {error}"
