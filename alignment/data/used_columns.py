"""Which columns of a source were read, and which nobody reads: told once per source, not per row."""

from collections import Counter
from collections.abc import Sequence
from string import Formatter

from alignment.config.stages import RowSource, TextSource
from alignment.data.conversations import Row
from alignment.data.formats import ABSENT, EXPORTED, columns_for, look_up
from alignment.journal import Journal

READ_WHOLE = ("records",)  # rows of our own, whose keys are checked


class SourceNotes:
    """Collects the columns of a source while its rows are converted to records of a kind.

    `kind` is corpus, prompts, demonstrations or comparisons; `cut` counts comparisons of conversations that go on after
    the turn that was compared.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.cut = 0
        self.files: list[str] = []  # of a directory, which are not read
        self.formats: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.absent: set[str] = set()
        self._present: set[str] = set()

    def add(self, row: Row, source: RowSource | TextSource) -> None:
        """Count the columns of a row that was converted."""
        form, used, wanted = used_columns(row, source, self.kind)
        self.formats[form] += 1
        self.read.update(name for name in row if name in used)
        self.unread.update(name for name in row if name not in used)
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
        if self.cut:
            lines.append(f"{path}: {self.cut} conversations go on after the compared answers; later turns are left out")
        return lines


def used_columns(row: Row, source: RowSource | TextSource, kind: str) -> tuple[str, set[str], set[str]]:
    """The format of a row, its columns that are read, and the paths that `columns` names in the recipe."""
    if isinstance(source, TextSource):
        conversation = next((name for name in ("messages", "conversations", "conversation") if name in row), "")
        return ("conversations", {conversation}, set()) if conversation else ("text", {source.text_field}, set())
    if source.format in READ_WHOLE or (kind == "comparisons" and source.format == "auto" and row.get(EXPORTED)):
        return "records" if source.format in READ_WHOLE else "exported", set(row), set()
    if source.format == "template":
        return "template", _fields(source.prompt) | _fields(source.completion), set()
    if source.format == "hh":
        return "hh", {"chosen", "rejected"}, set()
    if source.format == "oasst":
        return "oasst", {"prompt", "message_tree_id", "tree_state"}, set()
    form, columns = columns_for(source, row, kind)
    paths = set(columns.names.values())
    lists = {name for name in (columns.score, columns.rank) if name and name in row}
    given = set(source.columns.names.values()) if source.columns else set()
    return form, {path if path in row else path.split(".")[0] for path in paths} | lists, given


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
