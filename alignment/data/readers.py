"""Readers of external data: texts, prompts, demonstrations and comparisons from local files or data sets of the hub.

`alignment.data.files` reads rows, `alignment.data.formats` says which columns hold what. Every reader returns the valid
and the rejected rows: none is dropped silently.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from alignment.bounded import LONGEST_LINE, size_text
from alignment.config.stages import Columns, RowSource, Source, TextSource
from alignment.data.conversations import (
    BadRow,
    MissingColumnError,
    Row,
    as_messages,
    columns_of,
    fill,
    is_conversation,
    kind_of,
    make_prompt,
    make_response,
    parse_transcript,
)
from alignment.data.data_sets import read_data_set, split_files
from alignment.data.files import NumberedRow, file_kind, read_file, text_lines
from alignment.data.formats import EXPORTED, columns_for, document_column
from alignment.data.judgements import asked_turns, demonstration_turns, judgement, refuse_bad_label
from alignment.data.plain import plain_row, storable
from alignment.data.rankings import Group, from_scores, from_tree, tree_demonstration, tree_prompt
from alignment.data.trl_format import from_preference
from alignment.data.used_columns import SourceNotes
from alignment.errors import ConfigError, DataError, PathError
from alignment.paths import exists, path_below
from alignment.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Record,
    Rejected,
    first_problem,
    stable_id,
)

TOWN = "town://"
FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz")
MOST_ROWS, MOST_REJECTED = 20_000_000, 100_000  # of a source, which are held in memory
RecordT = TypeVar("RecordT", bound=Record)
SourceT = TypeVar("SourceT", RowSource, TextSource)


def locate(path: str, town: Path | None, origin: str = "") -> Path | None:
    """The file of a source, or None for a data set of the hub. Raises DataError, with its origin, if it is neither."""
    if path.startswith(TOWN):
        if town is None:
            raise ConfigError(f"{path!r} names a file of the town, but the recipe has no `town:` section")
        return town / inside(path, TOWN)
    if exists(path):
        return Path(path)
    if is_hub_id(path):
        return None
    remedy = f"it is {origin}" if origin else "give a file, or a data set as owner/name"
    raise DataError(f"{path!r} does not exist (relative to {Path.cwd()}); {remedy}")


def is_hub_id(path: str) -> bool:
    """Whether a path that is no file has the form of an id of the hub, owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and Path(path).suffix not in FILE_SUFFIXES


def inside(path: str, scheme: str) -> str:
    """The path after a scheme, relative to the scheme's root. Raises ConfigError for a path outside it."""
    try:
        return str(path_below(Path(), str(PurePosixPath(path.removeprefix(scheme)))))
    except PathError as error:
        raise ConfigError(
            f"{path!r} leads out of {scheme}: name a file below it, as in {scheme}texts/one.jsonl"
        ) from error


def read_documents(
    source: TextSource, town: Path | None = None, notes: SourceNotes | None = None
) -> tuple[list[Document], list[Rejected]]:
    """The documents of a source: paragraphs of plain files, or rows with a text column or a conversation."""
    return convert_parts(source, locate(source.path, town, source.origin), to_document, None, notes)


def stream_documents(
    source: TextSource, town: Path | None = None, notes: SourceNotes | None = None
) -> Iterator[Document | Rejected]:
    """The documents of a source, and the rows that are none, one by one."""
    for part, rows in parts_of(source, locate(source.path, town, source.origin), notes):
        yield from stream_rows(rows, part, to_document, notes)


def local_files(source: Source, town: Path | None) -> list[Path]:
    """The files of a source on this machine; none for a data set of the hub."""
    path = locate(source.path, town, source.origin)
    if path is None or not path.is_dir():
        return [] if path is None else [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def to_document(row: Row, source: TextSource, number: int) -> Document:
    """A document from a row with a text column or a conversation."""
    column = document_column(row, source)
    text = row.get(column)
    if is_conversation(text):
        return Document(messages=tuple(as_messages(text, "user")))
    if isinstance(text, bytes):
        raise BadRow(f"{column!r} is {kind_of(text)}")
    if not isinstance(text, str) or not text.strip():
        raise BadRow(f"no text under {column!r} and no list of messages; columns: {columns_of(row)}")
    return Document(text=text)


def _paragraphs(lines: Iterable[str], name: str) -> Iterator[NumberedRow]:
    """The paragraphs of a plain text, which blank lines part, as rows with the line where each begins."""
    number = first = 1
    parts: list[str] = []
    size = 0
    for line in chain(lines, (None,)):
        if line is not None and line.strip():
            first = first if parts else number
            size += len(line)
            if size <= LONGEST_LINE or not parts:
                parts.append(line)
        elif parts:
            text = "".join(parts) if line is None else "".join(parts).removesuffix("\n")
            long = size > LONGEST_LINE
            reason = f"the paragraph has more than {size_text(LONGEST_LINE)}; split it" if long else ""
            yield first, {name: text[:200] if long else text}, reason
            parts, size = [], 0
        number += line is not None and line.endswith("\n")


def read_rows(source: Source, path: Path | None, doubts: list[str]) -> Iterator[NumberedRow]:
    """Numbered rows of a file, of a directory that is laid out as a data set, or of a data set of the hub."""
    if path is not None and not path.is_dir():
        options = [option for option in ("split", "name", "revision") if getattr(source, option)]
        if options:
            raise ConfigError(f"{source.path} is a file, which has no `{options[0]}`: remove it, or name a data set")
        return _file_rows(source, path, doubts)
    return read_data_set(source.path if path is None else str(path), source.name, source.split, source.revision)


def _file_rows(source: Source, path: Path, doubts: list[str]) -> Iterator[NumberedRow]:
    """Numbered rows of a file; for a source of text, a plain file has one of each paragraph."""
    if isinstance(source, TextSource) and (kind := file_kind(path)).form == "text":
        return _paragraphs(text_lines(path, kind), source.text_field)
    return read_file(path, getattr(source, "rows", ""), doubts)


def read_as(
    source: RowSource,
    convert: Callable[[Row, RowSource, int], RecordT],
    town: Path | None,
    notes: SourceNotes | None = None,
) -> tuple[list[RecordT], list[Rejected]]:
    """Convert each row of a source, up to its limit; rows that cannot be converted are rejected with the reason."""
    return convert_parts(source, locate(source.path, town, source.origin), convert, source.limit or None, notes)


def convert_parts(
    source: SourceT,
    path: Path | None,
    convert: Callable[[Row, SourceT, int], RecordT],
    limit: int | None,
    notes: SourceNotes | None,
) -> tuple[list[RecordT], list[Rejected]]:
    """The converted rows of a source, at most `limit`, and the rejected ones."""
    good: list[RecordT] = []
    bad: list[Rejected] = []
    for part, rows in parts_of(source, path, notes):
        for row in stream_rows(rows, part, convert, notes, None if limit is None else limit - len(good)):
            if isinstance(row, Rejected):
                bad.append(row)
            else:
                good.append(row)
            if len(good) > MOST_ROWS:
                raise DataError(
                    f"{source.path} has more than {MOST_ROWS:,} rows; split it, and read the parts in runs of their own"
                )
    return good, bad


def parts_of(
    source: SourceT, path: Path | None, notes: SourceNotes | None
) -> Iterator[tuple[SourceT, Iterator[NumberedRow]]]:
    """The rows of a source; a directory's files are read one by one, each with the lines of its own."""
    files: list[Path] = []
    doubts: list[str] = [] if notes is None else notes.doubts
    if path is not None and path.is_dir():
        files, unread = split_files(path, source.name, source.split, texts=isinstance(source, TextSource))
        if notes is not None:
            notes.files = unread
    if path is None or not files:
        yield source, read_rows(source, path, doubts)
        return
    for file in files:
        part = source.model_copy(update={"path": f"{source.path.rstrip('/')}/{os.path.relpath(file, path)}"})
        yield part, _file_rows(source, file, doubts)


def stream_rows(
    rows: Iterator[NumberedRow],
    source: SourceT,
    convert: Callable[[Row, SourceT, int], RecordT],
    notes: SourceNotes | None = None,
    limit: int | None = None,
) -> Iterator[RecordT | Rejected]:
    """The converted rows, at most `limit`, and the rejected ones. `notes` are told which columns were read."""
    keep_nulls = isinstance(source, RowSource) and source.format == "records"
    good = bad = 0
    first: Rejected | None = None
    for number, row, reason in rows:
        if limit is not None and good >= limit:
            break
        try:
            if reason or not isinstance(row, dict):
                raise BadRow(reason or f"expected an object, not {type(row).__name__}")
            plain = plain_row(row, keep_nulls=keep_nulls)
            record = convert(plain, source, number)
            if notes is not None:
                notes.add(plain, source)
        except (BadRow, ValidationError) as error:
            why = str(error) if isinstance(error, BadRow) else first_problem(error)
            missing = _nulls(row) if isinstance(error, MissingColumnError) else ""
            rejected = Rejected(file=source.path, line=number, reason=f"{why}{missing}", row=storable(row))
            first, bad = first or rejected, bad + 1
            _check_rejected(first, good, bad)
            yield rejected
        else:
            good += 1
            yield record
    if notes is not None and good + bad == 0 and limit != 0:
        notes.empty.append(source.path)


def _nulls(row: Row) -> str:
    """The columns of a row that are there and null, as they stand in a reason."""
    names = [f"`{name}`" for name, value in row.items() if value is None]
    return f" ({', '.join(names[:5])} {'is' if len(names) == 1 else 'are'} null)" if names else ""


def _check_rejected(first: Rejected, good: int, bad: int) -> None:
    """Raise DataError before most rows of a large source are put aside."""
    if bad > MOST_REJECTED and bad > good:
        raise DataError(
            f"{first.file}: {bad:,} of the first {good + bad:,} rows cannot be used; the first is line {first.line}: "
            f"{first.reason}. Correct the file, or its options in the recipe"
        )


# --- rows to records -------------------------------------------------------------------------------------------------


def to_prompt(row: Row, source: RowSource, number: int) -> Prompt:
    """A prompt from a row in any supported format; what comes after the prompt is ignored."""
    if source.format == "records":
        return Prompt.model_validate(row)
    if source.format == "template":
        return make_prompt([Message(role="user", content=fill(source.prompt, row))])
    if source.format == "hh":
        return make_prompt(parse_transcript(row.get("chosen", ""))[0])
    if source.format == "oasst":
        return tree_prompt(row)
    return make_prompt(asked_turns(row, columns_for(source, row, "prompts")[1]))


def to_demonstration(row: Row, source: RowSource, number: int) -> Demonstration:
    """A demonstration from a row in any supported format."""
    if source.format == "records":
        return Demonstration.model_validate(row)
    if source.format == "template":
        messages = [Message(role="user", content=fill(source.prompt, row))]
        completion = fill(source.completion, row)
    elif source.format == "oasst":
        messages, completion = tree_demonstration(row)
    else:
        columns = columns_for(source, row, "demonstrations")[1]
        if source.columns is None and columns.completion:
            refuse_bad_label(row)
        messages, completion = demonstration_turns(row, columns)
    if not completion.strip():
        raise BadRow("the completion is empty")
    identity, prompt = stable_id("d", source.path, number), make_prompt(messages)
    return Demonstration(
        id=identity, messages=prompt.messages, completion=completion.strip(), source=source.path, line=number
    )


def read_comparisons(
    source: RowSource, town: Path | None, notes: SourceNotes | None = None
) -> tuple[list[Comparison], list[Rejected]]:
    """All comparisons of a source; a row with several responses yields all their pairs. The limit counts rows."""
    groups, bad = read_as(source, to_comparisons, town, notes)
    good = [comparison for group in groups for comparison in group.comparisons]
    if notes is not None:
        notes.cut = sum(group.cut for group in groups)
    return good, sorted([*bad, *(part for group in groups for part in group.rejected)], key=lambda row: row.line)


def to_comparisons(row: Row, source: RowSource, number: int) -> Group:
    """The comparisons of a row in any supported format."""
    if source.format == "oasst":
        return from_tree(row, source.path, number)
    if source.format == "records":
        return Group(comparisons=(Comparison.model_validate(row),))
    if source.format == "auto" and source.columns is None and row.get(EXPORTED):
        return Group(comparisons=(_exported(row),))
    if source.format == "hh":
        return _compared(row, source, number, Columns(chosen="chosen", rejected="rejected"))
    columns = columns_for(source, row, "comparisons")[1]
    if columns.responses:
        return from_scores(row, columns, source.path, number)
    return _compared(row, source, number, columns)


def to_comparison(row: Row, source: RowSource, number: int) -> Comparison:
    """The comparison of a row that holds one."""
    (comparison,) = to_comparisons(row, source, number).comparisons
    return comparison


def _exported(row: Row) -> Comparison:
    try:
        return from_preference(row)
    except (BadRow, ValidationError):
        raise
    except (TypeError, ValueError) as error:
        raise BadRow(f"an exported row that was changed: {error}") from error


def _compared(row: Row, source: RowSource, number: int, columns: Columns) -> Group:
    judged = judgement(row, columns, settled=bool(source.columns and source.columns.chosen))
    prompt = make_prompt(judged.turns)
    comparison = Comparison(
        id=stable_id("c", source.path, number),
        prompt=prompt,
        chosen=make_response(prompt, judged.chosen),
        rejected=make_response(prompt, judged.rejected),
        strength=judged.strength,
        annotation_id=f"{Path(source.path).name}:{number}",
        annotator_id=judged.annotator,
    )
    return Group(comparisons=(comparison,), cut=judged.cut)
