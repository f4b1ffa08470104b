"""Rows of a file as token ids for a model. A row that a model cannot read is put aside with its line and the reason."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from alignment.distributed.collectives import on_main
from alignment.errors import DataError, TooLongError, UnfitRowError
from alignment.models.chat import ChatFormat, Turn
from alignment.records import Comparison, Demonstration, Record, Rejected, ResponseSet, stream_numbered, write_records

RecordT = TypeVar("RecordT", bound=Record)
EncodedT = TypeVar("EncodedT")


@dataclass(frozen=True)
class Encoded(Generic[RecordT, EncodedT]):
    """The rows of a file that fit, each with its encoding, and the others. `too_long` of these have too many tokens."""

    rows: list[tuple[RecordT, EncodedT]]
    rejected: list[Rejected]
    too_long: int

    @property
    def counts(self) -> dict[str, float]:
        """The rows that were put aside, as metrics of a stage."""
        return {"too_long": float(self.too_long), "rejected": float(len(self.rejected) - self.too_long)}

    @property
    def first_reason(self) -> str:
        """Why the first row was put aside, for an error message."""
        return f"First: line {self.rejected[0].line}: {self.rejected[0].reason}" if self.rejected else "There is no row"


@dataclass(frozen=True)
class Unfit:
    """A row that is put aside."""

    rejected: Rejected
    is_too_long: bool = False


@dataclass(frozen=True)
class Pair:
    """A comparison as token ids: the prompt, and each response with the token that ends it, if it ended."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def encode_file(
    path: Path,
    kind: type[RecordT],
    encode: Callable[[RecordT], EncodedT],
    where: Callable[[RecordT], bool] = lambda _: True,
) -> Encoded[RecordT, EncodedT]:
    """Read records of `kind`, those that fulfil `where`, and encode each. `encode` raises UnfitRowError."""
    rows, rejected, too_long = [], list[Rejected](), 0
    for row in stream_encoded(path, kind, encode, where):
        if isinstance(row, Unfit):
            rejected.append(row.rejected)
            too_long += row.is_too_long
        else:
            rows.append(row)
    return Encoded(rows, rejected, too_long)


def stream_encoded(
    path: Path,
    kind: type[RecordT],
    encode: Callable[[RecordT], EncodedT],
    where: Callable[[RecordT], bool] = lambda _: True,
) -> Iterator[tuple[RecordT, EncodedT] | Unfit]:
    """Like `encode_file`, row by row."""
    name = f"{path.parent.name}/{path.name}"  # of the stage's output: the same in every home
    for numbered in stream_numbered(path, kind):
        if isinstance(numbered, Rejected):
            yield Unfit(numbered.model_copy(update={"file": name}))
            continue
        line, record = numbered
        if not where(record):
            continue
        try:
            yield record, encode(record)
        except UnfitRowError as error:
            file, number = _origin(record) or (name, line)
            rejected = Rejected(file=file, line=number, reason=str(error), row=record.model_dump(mode="json"))
            yield Unfit(rejected, isinstance(error, TooLongError))


def _origin(record: Record) -> tuple[str, int] | None:
    """File and line of the source that a record was read from, if it knows them."""
    if isinstance(record, Demonstration) and record.source and record.line is not None:
        return record.source, record.line
    return None


def put_aside(out: Path, *encoded: Encoded[RecordT, EncodedT]) -> None:
    """Write the rows that do not fit to `rejected.jsonl` of a stage's output; only the main process does."""
    on_main(write_records, out / "rejected.jsonl", [row for part in encoded for row in part.rejected])


def encode_demonstrations(
    demonstrations: Path, chat: ChatFormat, max_length: int, option: str
) -> Encoded[Demonstration, Turn]:
    """The demonstrations of a stage's output that fit into `max_length` tokens. Raises DataError, which names `option`,
    if none does."""

    def encode(row: Demonstration) -> Turn:
        turn = chat.turn(row.messages, row.completion)
        check_length(len(turn.ids), max_length)
        return turn

    encoded = encode_file(demonstrations / "demonstrations.jsonl", Demonstration, encode)
    if not encoded.rows:
        raise DataError(f"no demonstration fits into {max_length} tokens; raise `{option}`. {encoded.first_reason}")
    return encoded


def encode_comparisons(path: Path, chat: ChatFormat, max_length: int, option: str) -> Encoded[Comparison, Pair]:
    """The comparisons of a file within `max_length` tokens. Raises DataError, which names `option`, if none is."""
    encoded = encode_file(path, Comparison, partial(encode_comparison, chat, max_length=max_length))
    if not encoded.rows:
        raise DataError(f"no comparison fits into {max_length} tokens; raise `{option}`. {encoded.first_reason}")
    return encoded


def encode_comparison(chat: ChatFormat, row: Comparison, max_length: int) -> Pair:
    """Both sides of a comparison; raises TooLongError if either is longer than `max_length` with its prompt."""
    chosen, rejected = (
        chat.turn(row.prompt.messages, side.text, ended=side.ended is not False) for side in (row.chosen, row.rejected)
    )
    check_length(max(len(chosen.ids), len(rejected.ids)), max_length)
    return Pair(chosen.prompt, chosen.response, rejected.response)


def encode_responses(chat: ChatFormat, responses: ResponseSet) -> tuple[list[list[int]], int]:
    """Each response after its prompt, and the length of the prompt."""
    messages = responses.prompt.messages
    turns = [chat.turn(messages, r.text, ended=r.ended is not False) for r in responses.responses]
    return [turn.ids for turn in turns], len(turns[0].prompt)


def check_length(length: int, longest: float) -> None:
    """Raise TooLongError for more tokens than allowed."""
    if length > longest:
        raise TooLongError(f"{length} tokens, more than {longest}")
