"""Cleaning of text: what carries no meaning is dropped, what a script, an emoji or a program needs stays.

Prose loses empty lines, runs of blanks and the indentation that all its lines share. Code keeps every blank and every
empty line: a whole text that is code, and fenced blocks (```) within prose.
"""

import re
import unicodedata
from functools import cache
from itertools import pairwise
from textwrap import dedent

# Control characters, surrogates, private use and noncharacters; and of the format characters, which join letters
# (Persian, Hindi), emoji and digits or set the direction, those that say nothing: soft hyphens, byte order marks, and
# zero-width spaces except in the scripts that part words by them (Thai, Lao, Burmese, Khmer).
MEANINGLESS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\ufeff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\ue000-\uf8ff"
    "\U000f0000-\U0010ffff]+"
)
MOST_MARKS = 30  # on one letter, https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
PARTS_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
NEWLINES = ("\r\n", "\r", "\v", "\f", "\x85")
UNTIDY = re.compile(r"[ \t]{2}|\t|^\s|\s$", re.MULTILINE)
UNTIDY_ASCII = ("  ", "\t", "\n ", " \n", "\n\n")
BLANKS = re.compile(r"[ \t]{2,}")
FENCED = re.compile(r"^([ \t]*(```|~~~)[^\n]*\n.*?^[ \t]*\2[ \t]*$)", re.MULTILINE | re.DOTALL)
OPENS_BLOCK = re.compile(r"[:{(\[]\s*(?:$|#|//|/\*)")
STATEMENT = re.compile(
    r"""\s*(?:
        (?:\#|//|/\*|--\ |@\w)                                  # a comment, a decorator
        | (?:import|from)\ [\w.]+(?:\ import\ .*|\ as\ \w+)?$   # an import
        | (?:return|raise|assert|break|continue|pass|else|try|def|class)\b.*[\w)\]:"']$
        | .*[;{}]$                                              # a statement or block of C, Java, JavaScript, CSS
        | [\w.\[\]"']+(?:\ *:\ *[\w.\[\]]+)?\ *[-+*/|&^%]?=\ *\S  # an assignment
        | [\w.]+\(.*\)(?:\ *\#.*)?$                             # a call
    )""",
    re.VERBOSE,
)
FEWEST_STATEMENTS, STATEMENT_SHARE = 2, 0.6


def clean(text: str) -> str:
    """Compose characters, drop those without meaning, and in prose empty lines and runs of blanks; keep indentation and
    tabs.

    The indentation that all lines share is dropped, except in code.
    """
    for newline in NEWLINES:
        text = text.replace(newline, "\n")
    text = compose(MEANINGLESS.sub(_meaning, text))  # a character that is dropped parts marks which then combine
    if not text.strip() or is_tidy(text):
        return text.strip()
    if is_code(text):
        return text
    if "```" not in text and "~~~" not in text:
        return _clean_prose(text)
    parts = FENCED.split(text)  # prose, a fenced block and its fence, prose, …
    kept = [part if index % 3 == 1 else _clean_prose(part) for index, part in enumerate(parts) if index % 3 < 2]
    return "\n".join(part for part in kept if part)


def _meaning(match: re.Match[str]) -> str:
    """What stays of characters that have no meaning in most texts: one zero-width space after a letter of a script that
    parts words by it. Marks on the letter are passed over, since composing puts them into another order."""
    if "\u200b" not in match.group():
        return ""
    before = reversed(match.string[max(0, match.start() - MOST_MARKS) : match.start()])
    letter = next((c for c in before if not unicodedata.combining(c) and not MEANINGLESS.match(c)), "")
    return "\u200b" if PARTS_WORDS.match(letter) else ""


def compose(text: str) -> str:
    """Normalised to NFC, except for characters that NFC replaces by others: letters of Hindi with a dot (क़), Hebrew
    letters with points and compatibility ideographs stay as they were written."""
    if unicodedata.is_normalized("NFC", text):
        return text
    return "".join(
        part if index % 2 else unicodedata.normalize("NFC", part) for index, part in enumerate(_replaced().split(text))
    )


@cache
def _replaced() -> re.Pattern[str]:
    """Characters that NFC does not keep, by themselves."""
    characters = (chr(code) for code in range(0xA0, 0x110000) if not 0xD800 <= code <= 0xDFFF)
    return re.compile("([" + "".join(c for c in characters if unicodedata.normalize("NFC", c) != c) + "]+)")


def is_tidy(text: str) -> bool:
    """Whether no line is empty, has a run of blanks or a tab, or begins or ends with a blank. The text is not empty."""
    if not text.isascii():
        return UNTIDY.search(text) is None
    return not (text[0].isspace() or text[-1].isspace() or any(mark in text for mark in UNTIDY_ASCII))


def is_code(text: str) -> bool:
    """Whether blanks are part of a text's meaning: it has indented blocks, or most of its lines are statements."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    if len(lines) < FEWEST_STATEMENTS:
        return False
    if any(OPENS_BLOCK.search(line) and _is_deeper(below, line) for line, below in pairwise(lines)):
        return True
    return sum(STATEMENT.match(line) is not None for line in lines) >= STATEMENT_SHARE * len(lines)


def _is_deeper(line: str, above: str) -> bool:
    """Whether a line begins with the indentation of another, and more."""
    indentation = _indentation(line)
    return indentation != (other := _indentation(above)) and indentation.startswith(other)


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _clean_prose(text: str) -> str:
    lines = map(_clean_line, text.split("\n"))
    return dedent("\n".join(line for line in lines if line.strip()))


def _clean_line(line: str) -> str:
    """A line with its indentation, without runs of blanks after it; a run with a tab becomes a tab."""
    words = line.lstrip(" \t").rstrip()
    if "  " in words or "\t" in words:
        words = BLANKS.sub(lambda run: "\t" if "\t" in run.group() else " ", words)
    return _indentation(line) + words
