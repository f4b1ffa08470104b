"""Characters that not every database of Label Studio takes, and that nobody would see on a screen.

PostgreSQL stores neither NUL nor lone surrogates; a lone surrogate in SQLite makes the server fail when it is read. So
annotators are shown a stand-in, on both databases: the control pictures of Unicode (U+2400 for NUL), and the
replacement character for a lone surrogate. The texts on our side stay as they are.
"""

from typing import Any

CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: "\u2421"}
REPLACEMENT = "\ufffd"
NO_UNICODE = "a text has a lone surrogate, which is no character"
SURROGATES = dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT)
HIDDEN = (
    *range(0x80, 0xA0),  # C1, with the one-character CSI and OSC
    *(0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
)
TAGS = range(0xE0000, 0xE0080)
TERMINAL_LINES = (
    CONTROLS
    | SURROGATES
    | {0x0D: "\u240d"}
    | {code: f"\\u{code:04x}" for code in HIDDEN}
    | dict.fromkeys(TAGS, REPLACEMENT)
)
TERMINAL = TERMINAL_LINES | {0x0A: "\u240a"}
STAND_INS = str.maketrans(CONTROLS | SURROGATES)


def shown(value: Any) -> Any:
    """A task's data with stand-ins in all texts. Idempotent."""
    return _translated(value, STAND_INS)


def unicode_only(value: Any) -> Any:
    """A JSON value without lone surrogates, which cannot be written as UTF-8."""
    return _translated(value, SURROGATES)


def is_unicode(value: Any) -> bool:
    """Whether no text of a JSON value has a lone surrogate."""
    return bool(value == unicode_only(value))


def terminal_text(text: str, *, lines: bool = False) -> str:
    """A text that a terminal or a log shows as it is, on one line; with `lines`, its line breaks stay. Idempotent.

    Control characters become pictures; C1 controls and what changes the direction or hides text become escapes, which
    are also valid in JSON. So no text from outside moves the cursor, changes a title, or looks like another line.
    """
    return text.translate(TERMINAL_LINES if lines else TERMINAL)


def _translated(value: Any, table: dict[int, str]) -> Any:
    match value:
        case str():
            return value if value.isascii() and value.isprintable() else value.translate(table)
        case dict():
            return {_translated(key, table): _translated(item, table) for key, item in value.items()}
        case list() | tuple():
            return [_translated(item, table) for item in value]
    return value
