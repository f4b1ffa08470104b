"""The records that stages exchange, and their JSONL files, which are validated strictly when read.

An invalid row is never dropped silently and never repaired by a guess: `read_records` returns it as a
`Rejected` with file, line and reason, and the stage writes it to `rejected.jsonl`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from alignment.bounded import bounded_lines, open_bounded

SCHEMA_VERSION = 1
Split = Literal["train", "heldout"]


class Record(BaseModel):
    """A frozen row; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """A conversation that ends before the assistant's answer.

    `kind` groups prompts for reports; `meta` is private to the source of the prompt (for a gold judge, say), and never
    shown to models. Annotators see `meta["facts"]`, a text with what is known to be true, and nothing else of it.
    """

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    kind: str = ""
    split: Split = "train"
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _last_turn_is_the_users(self) -> "Prompt":
        if self.messages[-1].role == "assistant":
            raise ValueError("a prompt must not end with an assistant turn")
        return self

    @property
    def text(self) -> str:
        """The conversation as plain text, for people and logs; a single turn without its role."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in self.messages)


class Document(Record):
    """A piece of pretraining text: plain text, or a conversation (a forum thread, say) with its turns."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def _one_of_them(self) -> "Document":
        if bool(self.text) == bool(self.messages):
            raise ValueError("a document has either `text` or `messages`")
        return self

    @property
    def plain(self) -> str:
        """The text without roles."""
        return self.text or "\n".join(message.content for message in self.messages)


class Demonstration(Record):
    """A prompt with an answer that a person wrote; `source` and `line` are where it was read, if that is known."""

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    completion: str = Field(min_length=1)
    source: str = ""
    line: int | None = Field(None, exclude_if=lambda line: line is None)

    @model_validator(mode="after")
    def _last_turn_is_the_users(self) -> "Demonstration":
        if self.messages[-1].role == "assistant":
            raise ValueError("the turns before the completion must not end with an assistant turn")
        return self


class Response(Record):
    """One sampled answer. `id` is opaque: it reveals neither the model nor the order nor the score.

    `ended` is False for an answer that was cut off at the limit of tokens, and None where nobody knows (imported data).
    """

    id: str = Field(min_length=1)
    text: str
    ended: bool | None = None


class ResponseSet(Record):
    """A prompt with distinct responses to compare."""

    prompt: Prompt
    responses: tuple[Response, ...] = Field(min_length=2)


class Comparison(Record):
    """One judgement of one annotator: `chosen` is better than `rejected` for this prompt.

    `strength` is 1 (slightly better) to 3 (much better), 0 for a tie. `annotation_id` and `annotator_id` name the
    source of the judgement; imported data without annotators leaves `annotator_id` empty. `criteria` is the
    rating of chosen minus that of rejected, if the annotator rated both responses. `task_uid` is the task, and
    `chosen_first` whether it showed chosen before rejected (left of it, or above); None when unknown. `weight` scales
    its loss in training; the default is 1.
    """

    id: str = Field(min_length=1)
    prompt: Prompt
    chosen: Response
    rejected: Response
    strength: int = Field(default=1, ge=0, le=3)
    criteria: dict[str, int] = Field(default_factory=dict)
    annotation_id: str = ""
    annotator_id: str = ""
    task_uid: str = ""
    chosen_first: bool | None = None
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)


class Rejected(Record):
    """A rejected row, with its file, line and the reason."""

    file: str
    line: int
    reason: str
    row: Any = None


RecordT = TypeVar("RecordT", bound=Record)


def stable_id(prefix: str, *parts: object) -> str:
    """A short opaque id, a function of the parts; never numeric, so that nothing sorts it as a number."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
    return f"{prefix}_{digest[:12]}"


def read_lines(path: Path) -> Iterator[tuple[int, Any | None, str]]:
    """Yield (line number, JSON value, "") or (line number, None, reason) for each non-empty line of a JSONL file."""
    with open_bounded(path) as file:
        for number, raw, reason in bounded_lines(file):
            if reason:
                yield number, None, reason
            if reason or not raw.strip():
                continue
            try:
                yield number, json.loads(raw.decode("utf-8")), ""
            except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
                yield number, None, f"not a line of UTF-8 JSON: {error}"


def read_records(path: Path, kind: type[RecordT]) -> tuple[list[RecordT], list[Rejected]]:
    """Read a JSONL file of `kind`; invalid rows are returned in the second list."""
    numbered, bad = read_numbered(path, kind)
    return [record for _, record in numbered], bad


def read_numbered(path: Path, kind: type[RecordT]) -> tuple[list[tuple[int, RecordT]], list[Rejected]]:
    """Like `read_records`, each record with its line."""
    good: list[tuple[int, RecordT]] = []
    bad: list[Rejected] = []
    for row in stream_numbered(path, kind):
        if isinstance(row, Rejected):
            bad.append(row)
        else:
            good.append(row)
    return good, bad


def stream_numbered(path: Path, kind: type[RecordT]) -> Iterator[tuple[int, RecordT] | Rejected]:
    """The records of a JSONL file, each with its line, and the invalid rows, one by one."""
    for number, row, reason in read_lines(path):
        if reason:
            yield Rejected(file=str(path), line=number, reason=reason)
            continue
        try:
            yield number, kind.model_validate(row)
        except ValidationError as error:
            yield Rejected(file=str(path), line=number, reason=first_problem(error), row=row)


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as `path: message`, or the message if it is about the whole."""
    detail = error.errors()[0]
    path, message = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def as_line(record: Record) -> str:
    """The JSON of a record. A lone surrogate, which UTF-8 does not have, is escaped."""
    try:
        return record.model_dump_json()
    except PydanticSerializationError:
        return json.dumps(record.model_dump(mode="json"))


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSONL atomically (a reader sees the whole file or none); return their number."""
    return write_lines(path, (as_line(record).encode() + b"\n" for record in records))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines, each with its end, atomically; return their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    count = 0
    with temporary.open("wb") as file:
        for count, line in enumerate(lines, start=1):  # noqa: B007
            file.write(line)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count


def shard_files(path: Path) -> list[Path]:
    """A file of records and those in which it continues: `train.jsonl`, `train-00001.jsonl` and so on."""
    return [path, *sorted(path.parent.glob(f"{path.stem}-?????{path.suffix}"))]
