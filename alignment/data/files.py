"""Rows of files, read by what a file holds rather than by its name.

Read are JSON lines, JSON (a list, or an object with the rows under a key), delimited text (CSV, TSV) and Parquet, each
also gzipped; text is UTF-8, or UTF-16 with a byte order mark. JSON lines, delimited text and Parquet are streamed; a
JSON list is read as a whole. All reads are bounded (`alignment.bounded`).

A row that cannot be read comes with the reason; a file that cannot be read is a DataError.
"""

import csv
import io
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TextIO, cast

from alignment import bounded
from alignment.bounded import (
    LONGEST_LINE,
    MOST_WHOLE,
    NestingError,
    UnreadableFileError,
    bounded_lines,
    list_items,
    open_bounded,
    open_regular,
    size_text,
)
from alignment.data.conversations import CONVERSATIONS, PROMPTS, RESPONSES, short
from alignment.data.parquet import parquet_rows, refuse_doubles
from alignment.encodings import ZIPPED, text_encoding
from alignment.errors import DataError

NumberedRow = tuple[int, Any, str]  # line or row number, value, reason why it could not be read
HEAD_BYTES = 1 << 20
SHOWN_CELLS = 20
LINES, TABLES, TEXTS = (".jsonl", ".ndjson"), (".csv", ".tsv"), (".txt", ".md", "")
ARCHIVES = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"(\xb5/\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe\x00\x00": "text in UTF-32, not UTF-8",
    b"\x00\x00\xfe\xff": "text in UTF-32, not UTF-8",
}
WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html)\b", re.IGNORECASE)
SEPARATOR_LINE = re.compile(r"sep=.\s*")  # Excel's, above the header
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
QUOTED_NAME = re.compile(r'(?:^|(?<=[,;\t]))"(?:[^"]|"")*"(?=[,;\t\r\n]|$)')
OPEN_NAME = re.compile(r'(?:^|[,;\t])"')
READABLE = "give JSON lines, JSON, CSV, TSV, Parquet or text, plain or gzipped"


@dataclass(frozen=True)
class Repeated:
    """The values of a key that stands more than once in an object of JSON, and not with the same value."""

    key: str
    values: tuple[Any, Any]


@dataclass(frozen=True)
class FileKind:
    """What a file holds: `form` is lines, json, table, text or parquet."""

    form: str
    zipped: bool = False
    encoding: str = "utf-8"


# --- what a file holds -----------------------------------------------------------------------------------------------


def file_kind(path: Path) -> FileKind:
    """What the file holds, by its first bytes; its name decides only between forms that look the same."""
    zipped = _first_bytes(path, False).startswith(ZIPPED)
    head = _first_bytes(path, zipped)
    for magic, what in ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"{path}: the file is {what}; {READABLE}")
    if head.startswith(LFS_POINTER) and b"\noid " in head[:1024]:
        raise DataError(
            f"{path}: the file is a Git LFS pointer, which names the data and does not hold it; fetch the data with "
            "`git lfs pull` in its repository"
        )
    if WEB_PAGE.match(head) and suffix(path) not in TEXTS:
        raise DataError(f"{path}: the file is a web page (HTML), perhaps of an error or a login; fetch the data again")
    if head.startswith(b"PAR1"):
        return FileKind("parquet", zipped)
    encoding = text_encoding(head)
    if encoding != "utf-16" and _binary(head[:1024]):
        raise DataError(f"{path}: the file is binary, or UTF-16 without a byte order mark; {READABLE}")
    return FileKind(_text_form(path, head.decode(encoding, "replace"), suffix(path)), zipped, encoding)


def _binary(head: bytes) -> bool:
    """Whether the bytes of the first line are no text: many of them are zero."""
    first = head.split(b"\n")[0]
    return first.count(0) > len(first) // 5


def suffix(path: Path) -> str:
    """The suffix in lower case, without that of compression."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _text_form(path: Path, head: str, ending: str) -> str:
    """`lines`, `json`, `table` or `text`."""
    first, _, rest = head.lstrip("\ufeff \t\r\n").partition("\n")
    form = _json_form(first.strip(), rest.strip(), ending)
    if form or not head.strip():
        return form or "lines"
    if ending in (*TABLES, *TEXTS):
        return "table" if ending in TABLES else "text"
    raise DataError(f"{path}: the format {ending!r} is not supported; {READABLE}")


def _json_form(first: str, rest: str, ending: str) -> str:
    """`lines` or `json` for a text that is JSON by its first line, or by its name; "" for another text."""
    try:
        value = loads(first)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        whole = not rest and ending not in LINES
        return "json" if whole and (table_by_column(value) or (_row_keys(value) and not _is_row(value))) else "lines"
    if isinstance(value, list):
        rows = any(isinstance(row, dict) for row in value)
        return "lines" if ending in LINES and (rest or not rows) else "json" if rows or ending == ".json" else ""
    if re.match(r"\[\s*(\{|$)", first) or (first == "{" and ending in (".json", *LINES)):
        return "json"
    if ending == ".json":
        return "json" if first[:1] in ("{", "[") and not rest.startswith("{") else "lines"
    return "lines" if ending in LINES else ""


def table_by_column(content: dict[str, Any]) -> str:
    """How an object of JSON holds a table, if it is neither a row nor a file of rows; "" if it does not."""
    values = [*content.values()]
    if len(values) < 2:
        return ""
    if all(isinstance(value, dict) and value for value in values):
        keys = {frozenset(value) for value in values}
        if len(keys) == 1 and not keys.pop() & {"role", "from"}:
            return "an object of objects, rows by their ids or columns by row numbers"
    lists = [value for value in values if isinstance(value, list) and not any(isinstance(item, dict) for item in value)]
    same = len(lists) == len(values) and len({*map(len, lists)}) == 1
    return "a list for each column" if same and len(lists[0]) > 1 else ""


def _row_keys(content: dict[str, Any]) -> list[str]:
    """The keys of an object that may hold rows: lists of objects that are no turns of a conversation."""
    return [
        key
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and not value[0].keys() & {"role", "from"}
    ]


def _is_row(content: dict[str, Any]) -> bool:
    """Whether an object is one row, which may have several responses, rather than a file of rows."""
    return bool(content.keys() & {*PROMPTS, *CONVERSATIONS}) and {*_row_keys(content)} <= {*RESPONSES}


def _first_bytes(path: Path, zipped: bool) -> bytes:
    with _opened(path, zipped) as file:
        return file.read(HEAD_BYTES)


@contextmanager
def _opened(path: Path, zipped: bool) -> Iterator[BinaryIO]:
    """The file's bytes, unzipped. Raises DataError if they cannot be read to the end."""
    try:
        with open_bounded(path, zipped=zipped) as file:
            yield file
    except UnreadableFileError as error:
        raise DataError(f"{path}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        what = "the gzip file is damaged" if zipped else "the file cannot be read"
        raise DataError(f"{path}: {what} ({error}); fetch it again") from error


# --- rows ------------------------------------------------------------------------------------------------------------


def read_file(path: Path, key: str = "", doubts: list[str] | None = None) -> Iterator[NumberedRow]:
    """Numbered rows of a file. `key` is where an object of JSON holds its rows; `doubts` collects what may be wrong
    with rows that are read."""
    doubts = [] if doubts is None else doubts
    kind = file_kind(path)
    if kind.form == "parquet":
        yield from _parquet_rows(path, kind)
    elif kind.form == "table":
        yield from _table_rows(path, kind, doubts)
    elif kind.form == "json" or (key and kind.form == "lines"):
        yield from _json_rows(path, kind, key)
    elif kind.form == "lines":
        yield from _json_lines(path, kind)
    else:
        raise DataError(f"{path}: the file is plain text, not rows; {READABLE}")


def read_text(path: Path, kind: FileKind) -> str:
    """The whole text of a file; bytes that cannot be decoded become lone surrogates."""
    with _opened(path, kind.zipped) as file:
        return _decode(path, _whole(file), kind.encoding)


def text_lines(path: Path, kind: FileKind) -> Iterator[str]:
    """The lines of a plain text, those that are too long in pieces; bytes that cannot be decoded become lone
    surrogates."""
    with _opened(path, kind.zipped) as file:
        text = _text(path, file, kind, newline="\n")
        while line := text.readline(LONGEST_LINE):
            yield line


def _text(path: Path, file: BinaryIO, kind: FileKind, newline: str) -> TextIO:
    """The text of a file; UTF-16 is decoded as a whole."""
    if kind.encoding == "utf-16":
        return io.StringIO(_decode(path, _whole(file), "utf-16"), newline=newline)
    return io.TextIOWrapper(file, kind.encoding, "surrogateescape", newline=newline)


def _whole(file: BinaryIO) -> bytes:
    """All bytes of a file, which are held in memory."""
    content = file.read(MOST_WHOLE + 1)
    if len(content) > MOST_WHOLE:
        raise UnreadableFileError(
            f"it holds more than {size_text(MOST_WHOLE)}, and such a file is read as a whole; split it, or give JSON "
            "lines in UTF-8"
        )
    return content


def _decode(path: Path, raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding, "strict" if encoding == "utf-16" else "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: the file begins as UTF-16, but is not to its end ({error}); save it as UTF-8"
        ) from error


def loads(text: str) -> Any:
    """JSON, with a `Number` where a number cannot be kept, and `Repeated` where a key has two values."""
    return bounded.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    first: dict[str, Any] = {}
    for key, value in pairs:
        if first.setdefault(key, value) != value:
            content[key] = Repeated(key, (first[key], value))
    return content


def _json_lines(path: Path, kind: FileKind) -> Iterator[NumberedRow]:
    with _opened(path, kind.zipped) as file:
        if kind.encoding == "utf-16":
            file = io.BytesIO(_decode(path, _whole(file), "utf-16").encode())
        for number, raw, reason in bounded_lines(file):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if reason:
                yield number, raw.decode("utf-8", "replace"), reason
            elif raw.strip():
                yield _json_line(number, raw)


def _json_line(number: int, raw: bytes) -> NumberedRow:
    try:
        return number, loads(raw.decode("utf-8")), ""
    except NestingError:
        return number, raw[:200].decode("utf-8", "replace"), "the row is nested too deeply"
    except ValueError as error:
        hint = "; the line ends with a comma, as in a list: write it with its brackets" if _ends_in_comma(raw) else ""
        return number, raw[:200].decode("utf-8", "replace"), f"not a line of UTF-8 JSON: {error}{hint}"


def _ends_in_comma(raw: bytes) -> bool:
    return raw.rstrip().endswith(b",")


def _json_rows(path: Path, kind: FileKind, key: str) -> Iterator[NumberedRow]:
    text = read_text(path, kind)
    try:
        content = loads(text)
    except NestingError as error:
        yield from _items(path, text, error)
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not key:
            if text.lstrip().partition("\n")[0].strip() == "{":
                raise DataError(
                    f"{path}: the file holds one JSON object after another, each over several lines; write each on a "
                    "line of its own (`jq -c . FILE`)"
                ) from error
            yield from _json_lines(path, kind)
            return
        raise DataError(f"{path}: the file is not valid JSON: {error}; correct it, or fetch it again") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}; give JSON lines") from error
    rows = content
    if isinstance(content, dict):
        if not key and (table := table_by_column(content)):
            raise DataError(
                f"{path}: the file is {table}; give a list of rows, as pandas writes it with orient='records'"
            )
        for part in key.split(".") if key else ():
            rows = rows.get(part) if isinstance(rows, dict) else None
    if isinstance(rows, dict) and not key and _is_row(rows):
        rows = [rows]
    if isinstance(rows, Repeated):
        raise DataError(f"{path}: the key {rows.key!r} stands twice, with different rows; give each a file of its own")
    if not isinstance(rows, list):
        keys = ", ".join(map(repr, _row_keys(content))) if isinstance(content, dict) else ""
        hint = f" (lists of rows are under: {keys})" if keys else ""
        wanted = f"no list of rows under {key!r}" if key else "expected a list of rows"
        raise DataError(f"{path}: {wanted}; name the key that holds them with `rows:`{hint}")
    yield from ((number, row, "") for number, row in enumerate(rows, start=1))


def _items(path: Path, text: str, problem: NestingError) -> Iterator[NumberedRow]:
    """The rows of a list of which one is nested too deeply."""
    try:
        items = list(list_items(text))
    except ValueError:
        items = []
    if not items:
        raise DataError(
            f"{path}: the JSON is nested too deeply; give JSON lines, where a bad row stands alone"
        ) from problem
    for number, item in enumerate(items, start=1):
        yield _json_line(number, item.encode("utf-8", "surrogateescape"))


def _table_rows(path: Path, kind: FileKind, doubts: list[str]) -> Iterator[NumberedRow]:
    """Rows of delimited text under its header; every cell is text, and an empty one is absent."""
    csv.field_size_limit(LONGEST_LINE)
    with _opened(path, kind.zipped) as file:
        text = _text(path, file, kind, newline="")
        above, header_text = _header_text(path, text)
        delimiter = _delimiter(header_text, suffix(path))
        header = _header(path, header_text, delimiter)
        lines = _TableLines(text)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            number = above + reader.line_num + 1
            lines.left = LONGEST_LINE
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnreadableFileError as error:
                raise DataError(f"{path} line {number}: {error}") from error
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise DataError(
                        f"{path} line {number}: a quotation mark is never closed, or the row has more than "
                        f"{size_text(LONGEST_LINE)}; correct the file"
                    ) from error
                yield number, None, f"not a row of delimited text: {error}"
                continue
            if not cells:
                continue
            row = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            doubts += (f"line {number}, {header[n]!r}" for n in _swallowing(cells, len(header), delimiter))
            wrong = "" if len(cells) == len(header) else f"{len(cells)} cells under a header of {len(header)} columns"
            yield number, row if not wrong else {**row, "…": cells[len(header) :][:SHOWN_CELLS]}, wrong


def _swallowing(cells: list[str], columns: int, delimiter: str) -> Iterator[int]:
    """The cells that hold whole rows of the table, as behind a quotation mark that is closed some rows later.

    Their first line has the rest of its row, the last line the beginning of its own. A delimiter before a blank may be
    prose.
    """
    if columns < 2 or len(cells) != columns:
        return
    for index, cell in enumerate(cells):
        first, *lines = cell.splitlines()[:2000] or [""]
        if lines:
            counts = [len(re.findall(re.escape(delimiter) + r"(?! )", line)) for line in (first, *lines)]
            if counts == [columns - 1 - index, *[columns - 1] * (len(lines) - 1), index]:
                yield index


def _header_text(path: Path, text: TextIO) -> tuple[int, str]:
    """The number of lines above the first row, and of these the header: blank lines precede it, names may have several.

    Raises DataError if a quotation mark in it is not closed.
    """
    number, line = 1, text.readline(HEAD_BYTES)
    while line and (not line.strip(" \r\n") or SEPARATOR_LINE.fullmatch(line)):
        number, line = number + 1, text.readline(HEAD_BYTES)
    lines, size = [line], len(line)
    is_open = line.count('"') % 2 == 1 and OPEN_NAME.search(QUOTED_NAME.sub("", line)) is not None
    while is_open:
        line = text.readline(HEAD_BYTES)
        number, size = number + 1, size + len(line)
        if not line or size > HEAD_BYTES:
            raise DataError(f"{path}: a quotation mark in the header is never closed; correct the file")
        lines.append(line)
        is_open = line.count('"') % 2 == 0
    return number, "".join(lines)


def _delimiter(header: str, ending: str) -> str:
    """The delimiter that splits the header; a header of one column has that of the file's name."""
    usual = "\t" if ending == ".tsv" else ","
    cuts = [mark for mark in dict.fromkeys((usual, "\t", ",", ";", "|")) if len(_cells(header, mark)) > 1]
    return cuts[0] if cuts else usual


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line; none if the delimiter does not split it, as with a line break outside of quotation marks."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _header(path: Path, line: str, delimiter: str) -> list[str]:
    names = [name.strip() for name in _cells(line, delimiter)]
    if line and not names:
        raise DataError(f"{path}: the header {short(line)} has no columns; correct its quotation marks")
    refuse_doubles(path, [name for name in names if name])
    return [name or f"column {number}" for number, name in enumerate(names, start=1)]


class _TableLines:
    """The lines of delimited text; they end where one row has too many characters, set in `left` for each row."""

    def __init__(self, text: TextIO) -> None:
        self._text, self.left = text, LONGEST_LINE

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise UnreadableFileError(
                f"a row has more than {size_text(LONGEST_LINE)} before its end; split it, or close its quotation mark"
            )
        if not line:
            raise StopIteration
        return line


def _parquet_rows(path: Path, kind: FileKind) -> Iterator[NumberedRow]:
    with _opened(path, kind.zipped) as file:
        if kind.zipped:
            with TemporaryFile() as unzipped:
                shutil.copyfileobj(file, unzipped)
                yield from parquet_rows(path, cast(BinaryIO, unzipped))
            return
    with open_regular(path) as plain:
        yield from parquet_rows(path, plain)
