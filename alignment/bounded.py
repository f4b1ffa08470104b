"""Bounded reads: every file that comes from outside is opened, measured and parsed here.

Only regular files are opened, so that a pipe or a device neither blocks nor has no end. What is read has a limit in
bytes, compressed files also in what they expand to; JSON has one on lists and objects, depth and digits. A value that
cannot be kept (NaN, infinity, thousands of digits) becomes a `Number`, so that one row is put aside and not the file.

Errors are OSError for what cannot be read and ValueError for what cannot be parsed; callers add the next step.
"""

import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

MIB = 1 << 20
MOST_PLAIN = 32 << 30  # bytes of a file that is read line by line
MOST_EXPANDED, MOST_RATIO = 256 * MIB, 100  # a gzip file may expand to the first, or to this many times its size
MOST_WHOLE = 2 << 30  # bytes of a file that is held in memory
MOST_DOCUMENT = 64 * MIB  # bytes of a recipe, a manifest, a configuration
KERNEL = (Path("/proc"), Path("/sys"))  # below them are files of no size that may have no end
LONGEST_LINE = 64 * MIB
CHUNK = MIB
MOST_EMPTY = 10_000  # members of a gzip file without content, one after the other
GZIP, GZIP_CHUNK = 31, 16 << 10  # the format; what is read at once, copied for each member in it
FREE_CONTAINERS, BYTES_PER_CONTAINER = 1_000_000, 32  # of JSON: an empty list takes 2 bytes there and 56 in memory
STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


class UnreadableFileError(OSError):
    """A file that is not read: no regular file, or larger than its limit."""


@dataclass(frozen=True)
class Number:
    """A number that cannot be kept: NaN, an infinity, or thousands of digits."""

    text: str


# --- bytes -----------------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened without waiting. Raises OSError for everything else: pipes, devices, sockets."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null character in the name
        raise UnreadableFileError(f"its name is no name of a file: {error}") from error
    status = os.fstat(descriptor)
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe, a device or a socket, which is read once"
        raise UnreadableFileError(f"not a file but {what}; save it to a file")
    if any(root.is_mount() and root.stat().st_dev == status.st_dev for root in KERNEL):
        os.close(descriptor)
        raise UnreadableFileError("not a file but what the kernel makes while it is read; save it to a file")
    return os.fdopen(descriptor, "rb")


class _Limited(io.RawIOBase):
    """The bytes of a file, with an error beyond a limit."""

    def __init__(self, source: BinaryIO, most: int, remedy: str) -> None:
        self._source, self._left = source, most
        self._problem = f"it holds more than {size_text(most)}; {remedy}"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), self._left + 1))
        if data is None:  # of a file that was opened without waiting and has nothing yet
            raise UnreadableFileError("it has no end and gives no bytes now; save it to a file")
        if len(data) > self._left:
            raise UnreadableFileError(self._problem)
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Unzipped(io.RawIOBase):
    """The content of a gzip file.

    Python's own reader takes minutes for a header of megabytes, or for a million members in a small file.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._zipped, self._stream = source, b"", zlib.decompressobj(wbits=GZIP)
        self._inside = False  # of a member: it has begun, and has not ended
        self._empty = 0  # members without content, one after the other

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._zipped = self._zipped or self._source.read(GZIP_CHUNK)
            if not self._inside and not self._zipped.strip(b"\0"):  # padding between members, or the end
                if not self._zipped:
                    return 0
                self._zipped = b""
                continue
            if not self._zipped:
                raise EOFError("it ends in the middle")
            if not self._inside:
                self._zipped = self._zipped.lstrip(b"\0")
            data = self._stream.decompress(self._zipped, len(buffer))
            self._inside = not self._stream.eof
            self._zipped = self._stream.unconsumed_tail
            if self._stream.eof:
                self._zipped, self._stream = self._stream.unused_data, zlib.decompressobj(wbits=GZIP)
                self._empty = 0 if data else self._empty + 1
                if self._empty > MOST_EMPTY:
                    raise UnreadableFileError(f"more than {MOST_EMPTY:,} empty gzip members follow each other")
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def open_bounded(path: Path, *, zipped: bool = False, most: int = MOST_PLAIN) -> Iterator[BinaryIO]:
    """A file's bytes, unzipped, at most `most`. Raises OSError; EOFError, zlib.error for a damaged gzip."""
    with open_regular(path) as file:
        if not zipped:
            yield cast(BinaryIO, io.BufferedReader(_Limited(file, most, "split it"), CHUNK))
            return
        expanded = max(MOST_EXPANDED, MOST_RATIO * os.fstat(file.fileno()).st_size)
        remedy = "split it" if most < expanded else "if that is right, unzip it and give the plain file"
        limited = _Limited(cast(BinaryIO, _Unzipped(file)), min(most, expanded), remedy)
        yield cast(BinaryIO, io.BufferedReader(limited, CHUNK))


def read_bounded(path: Path, most: int = MOST_DOCUMENT, *, zipped: bool = False) -> bytes:
    """The whole content of a regular file. Raises OSError if there is more than `most`."""
    with open_bounded(path, zipped=zipped, most=most) as file:
        return file.read()


def bounded_lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes, str]]:
    """The lines of a file with their numbers; of a line that is too long only the start, with the reason."""
    number = 0
    while raw := file.readline(longest + 1):
        number += 1
        if len(raw) <= longest or raw.endswith(b"\n"):
            yield number, raw, ""
            continue
        while (rest := file.readline(CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, raw[:200], f"the line has more than {size_text(longest)}; split the row"


def size_text(size: int) -> str:
    """A number of bytes in its unit, as in 64 MiB."""
    for unit, name in ((1 << 30, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


# --- JSON ------------------------------------------------------------------------------------------------------------


def loads(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """JSON, with a `Number` where a number cannot be kept. Raises ValueError, also where it is nested too deeply."""
    if len(text) > MIB:
        most = FREE_CONTAINERS + len(text) // BYTES_PER_CONTAINER
        if text.count("[") + text.count("{") > most:
            raise ValueError(f"it has more than {most:,} lists and objects")
    try:
        return json.loads(text, parse_constant=Number, parse_int=_integer, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise NestingError("it is nested too deeply") from error


class NestingError(ValueError):
    """JSON with more levels than can be read."""


def _integer(digits: str) -> int | Number:
    try:
        return int(digits)
    except ValueError:  # Python converts at most 4,300 digits
        return Number(f"{digits[:20]}… ({len(digits)} digits)")


def list_items(text: str) -> Iterator[str]:
    """The items of a JSON list as text, whatever is in them: one that cannot be parsed does not take the others along.

    Raises ValueError for a text that is no list.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("["):
        raise ValueError("it is no list")
    depth, start = 0, 0
    for match in STRUCTURE.finditer(text):
        mark = match.group()
        if mark in ("[", "{"):
            depth += 1
            start = match.end() if depth == 1 else start
        elif mark in ("]", "}") or (mark == "," and depth == 1):
            if depth == 1 and (item := text[start : match.start()]).strip():
                yield item
            start = match.end() if depth == 1 else start
            depth -= mark != ","
            if not depth:
                return
    raise ValueError("the list has no end")


def unkept_number(value: Any) -> Number | None:
    """The first number in a value that cannot be kept, if any: a `Number`, or an infinity (JSON reads 1e999 as one)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Number):
            return item
        if isinstance(item, float) and math.isinf(item):
            return Number(str(item))
        waiting.extend(item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ())
    return None


def read_json(path: Path, most: int = MOST_DOCUMENT) -> Any:
    """A JSON document. Raises OSError if it cannot be read, ValueError if it holds what cannot be parsed or kept."""
    return loads_kept(read_bounded(path, most).decode("utf-8-sig"))


def loads_kept(text: str) -> Any:
    """JSON whose numbers can all be kept. Raises ValueError for any other."""
    value = loads(text)
    if (number := unkept_number(value)) is not None:
        raise ValueError(f"it holds a number that cannot be kept: {number.text}")
    return value
