"""Rows in plain form: values that JSON can hold, and that every later stage can store.

Arrow fills absent keys with nulls, so a key that is null is not there. Bytes are the UTF-8 text that they are; others
stay, and no reader takes them for text. Text that is no Unicode (half of a surrogate pair, bytes of a text file that
are not UTF-8), numbers that cannot be kept and deep nesting make a row unusable, wherever they are.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from alignment.bounded import Number
from alignment.data.conversations import BadRow, Row, short
from alignment.data.files import Repeated

DEEPEST = 100
SURROGATES = re.compile("[\ud800-\udfff]")
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as Python decodes them


def plain_row(row: Mapping[Any, Any], *, keep_nulls: bool = False) -> Row:
    """The row in plain form. Raises BadRow with the column of a value that has none."""
    return {
        _text(str(name), "the name of a column"): _plain(value, short(name), 0, keep_nulls)
        for name, value in row.items()
        if value is not None or keep_nulls
    }


def _plain(value: Any, where: str, depth: int, keep_nulls: bool) -> Any:
    if isinstance(value, str):
        return _text(value, where)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise BadRow(f"{where} holds a number that cannot be kept: {value}")
        return value
    if depth > DEEPEST:
        raise BadRow(f"{where} is nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        return {
            _text(str(name), where): _plain(item, where, depth + 1, keep_nulls)
            for name, item in value.items()
            if item is not None or keep_nulls
        }
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1, keep_nulls) for item in value]
    if isinstance(value, Number):
        raise BadRow(f"{where} holds a number that cannot be kept: {value.text}")
    if isinstance(value, Repeated):
        first, other = map(short, value.values)
        raise BadRow(f"the key {short(value.key)} stands twice in the row, with different values: {first} and {other}")
    return _decoded(value, where) if isinstance(value, bytes) else str(value)  # a time or a decimal


def _decoded(value: bytes, where: str) -> str | bytes:
    """Bytes as the text that they are; others stay, which no reader takes for text: an image beside the text, say."""
    try:
        return _text(value.decode("utf-8"), where)
    except UnicodeDecodeError:
        return value


def _text(text: str, where: str) -> str:
    broken = SURROGATES.search(text)
    if broken is None:
        return text
    if UNDECODED.match(broken.group()):
        raise BadRow(f"{where} holds bytes that are not UTF-8 (character {broken.start() + 1}); save the file as UTF-8")
    raise BadRow(f"{where} holds a lone surrogate, half of a character (character {broken.start() + 1})")


def storable(value: Any, depth: int = 0) -> Any:
    """Any value in a form that `rejected.jsonl` can hold; what cannot be kept is shown as text."""
    if isinstance(value, str):
        return SURROGATES.sub(lambda found: f"\\u{ord(found.group()):04x}", value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else short_number(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {storable(str(name)): storable(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item, depth + 1) for item in value]
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Repeated):
        return storable(value.values, depth)
    return f"({len(value)} bytes)" if isinstance(value, bytes) else str(value)


def short_number(value: int) -> str:
    """A large integer as text."""
    return f"about 2^{value.bit_length() - 1}"
