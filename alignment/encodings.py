"""Text of files that people save: UTF-8, or UTF-16 with a byte order mark, plain or gzipped."""

import gzip

ZIPPED = b"\x1f\x8b"


def text_encoding(head: bytes) -> str:
    """UTF-8 unless a byte order mark says otherwise."""
    if head.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"


def decoded(raw: bytes) -> str:
    """The text of a file. Raises UnicodeDecodeError, and for a damaged gzip file OSError, EOFError or zlib.error."""
    content = gzip.decompress(raw) if raw.startswith(ZIPPED) else raw
    return content.decode(text_encoding(content))
