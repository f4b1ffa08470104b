"""Text of files that people save: UTF-8, or UTF-16 with a byte order mark, plain or gzipped."""

from pathlib import Path

from alignment.bounded import open_regular, read_bounded

ZIPPED = b"\x1f\x8b"


def text_encoding(head: bytes) -> str:
    """UTF-8 unless a byte order mark says otherwise."""
    if head.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"


def bounded_text(path: Path, most: int) -> str:
    """The text of a regular file of at most `most` bytes, unzipped.

    Raises OSError, UnicodeDecodeError, and EOFError or zlib.error for a damaged gzip file.
    """
    with open_regular(path) as file:
        zipped = file.read(2) == ZIPPED
    content = read_bounded(path, most, zipped=zipped)
    return content.decode(text_encoding(content))
