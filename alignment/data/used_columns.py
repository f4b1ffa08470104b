"""Which columns of a source were read, and which nobody reads: told once per source, not per row.

Keys of messages and of responses count like columns: `messages[].images`, `completions[].model`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any

from alignment.config.stages import RowSource, TextSource
from alignment.data.conversations import Row, is_conversation
from alignment.data.formats import ABSENT, EXPORTED, columns_for, document_column, look_up
from alignment.data.judgements import verdicts_beside
from alignment.journal import Journal

READ_WHOLE = ("records",)  # rows of our own, whose keys are checked
Path = tuple[str, ...]  # of keys; EACH stands for every item of a list
EACH = "*"
EMPTY: tuple[Any, ...] = ("", [], {})  # values that say nothing


class SourceNotes:
    """Collects the columns of a source while its rows are converted to records of a kind.

    `kind` is corpus, prompts, demonstrations or comparisons; `cut` counts comparisons of conversations that go on after
    the turn that was compared.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cut = 0
        self.doubts: list[str] = []  # cells that seem to hold rows
        self.empty: list[str] = []  # files without rows
        self.files: list[str] = []  # of a directory, which are not read
        self.formats: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.absent: set[str] = set()
        self._present: set[str] = set()

    def add(self, row: Row, source: RowSource | TextSource) -> None:
        """Count the columns of a row that was converted."""
        form, paths, wanted = used_columns(row, source, self.kind)
        self.formats[form] += 1
        first = {path[0] for path in paths}
        self.read.update(name for name in row if name in first)
        unread = [*(name for name in row if name not in first), *_unread_within(row, paths)]
        self.unread.update([*dict.fromkeys(unread)])  # each once, in the order of the row
        self._present |= {path for path in wanted if look_up(row, path) is not ABSENT}
        self.absent = (self.absent | wanted) - self._present

    def lines(self, path: str) -> list[str]:
        """What a person should know about the source; nothing if every column was read."""
        lines = []
        if self.unread:
            lines.append(f"{path}: no option reads {_listed(self.unread)}")
        if self.files:
            more = f" and {len(self.files) - 20} more" if len(self.files) > 20 else ""
            lines.append(f"{path}: not in the split, or of another format: {', '.join(self.files[:20])}{more}")
        if self.absent:
            lines.append(f"{path}: no row has {', '.join(map(repr, sorted(self.absent)))}, which `columns` names")
        if self.doubts:
            lines.append(
                f"{path}: {len(self.doubts)} cells hold whole rows of the table, as if a quotation mark were closed "
                f"rows later (first: {self.doubts[0]}); those rows are not read as such: correct the file"
            )
        lines += [f"{file}: no rows; the file is empty, or has a header alone" for file in self.empty]
        if self.cut:
            lines.append(f"{path}: {self.cut} conversations go on after the compared answers; later turns are left out")
        return lines


def used_columns(row: Row, source: RowSource | TextSource, kind: str) -> tuple[str, set[Path], set[str]]:
    """The format of a row, the paths that are read, and the columns that `columns` names in the recipe."""
    if isinstance(source, TextSource):
        column = document_column(row, source)
        return ("conversations" if is_conversation(row[column]) else "text"), {(column,)}, set()
    if source.format in READ_WHOLE or (kind == "comparisons" and source.format == "auto" and row.get(EXPORTED)):
        return "records" if source.format in READ_WHOLE else "exported", {(name,) for name in row}, set()
    if source.format == "template":
        return "template", {(name,) for name in _fields(source.prompt) | _fields(source.completion)}, set()
    if source.format == "hh":
        return "hh", {("chosen",), ("rejected",)}, set()
    if source.format == "oasst":
        return "oasst", {("prompt",), ("message_tree_id",), ("tree_state",)}, set()
    form, columns = columns_for(source, row, kind)
    paths = {_path(row, path) for option, path in columns.names.items() if option != "responses"}
    if kind == "comparisons" and columns.chosen and not (source.columns and source.columns.chosen):
        paths |= {(name,) for name in verdicts_beside(row, columns)}
    ranks = [name for name in (columns.score, columns.rank) if name]
    paths |= {(name,) for name in ranks if name in row}
    if columns.responses:
        items = (*_path(row, columns.responses), EACH)
        paths |= {(*items, *name.split(".")) for name in (columns.text or "text", *ranks)}
    given = set(source.columns.names.values()) if source.columns else set()
    return form, paths, given


def _path(row: Row, name: str) -> Path:
    """The keys that lead to a column, or into one."""
    return (name,) if name in row else tuple(name.split("."))


def _unread_within(value: Any, paths: set[Path], name: str = "") -> Iterator[str]:
    """The keys within columns that are read, which are not read themselves and say something."""
    if () in paths:
        yield from _unread_of_messages(value, name)
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        below = {path[1:] for path in paths if path[0] in (EACH, str(key))}
        inner = f"{name}[]" if isinstance(value, list) else f"{name}.{key}" if name else str(key)
        if below:
            yield from _unread_within(item, below, inner)
        elif name and item not in EMPTY:
            yield inner


def _unread_of_messages(value: Any, name: str) -> Iterator[str]:
    """The keys of messages other than role and content, and those of the parts of a content other than text."""
    for message in value if isinstance(value, list) else (value,):
        if not isinstance(message, Mapping) or not message.keys() & {"content", "value"}:
            continue
        inner = f"{name}[]" if isinstance(value, list) else name
        read = {"role" if "role" in message else "from", "content" if "content" in message else "value"}
        yield from (f"{inner}.{key}" for key, item in message.items() if key not in read and item not in EMPTY)
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping):
                unread = (key for key, item in part.items() if key not in ("type", "text") and item not in EMPTY)
                yield from (f"{inner}.content[].{key}" for key in unread)


def _fields(template: str) -> set[str]:
    """The columns that a template reads."""
    return {field.split("[")[0] for _, field, _, _ in Formatter().parse(template) if field}


def _listed(columns: Counter[str]) -> str:
    names = [repr(name) for name, _ in columns.most_common()]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def write_notes(journal: Journal, notes: Sequence[tuple[str, SourceNotes]]) -> None:
    """Write what the notes of a stage's sources say to its journal, if anything."""
    lines = [line for path, note in notes for line in note.lines(path)]
    if lines:
        journal.note("sources", lines)
