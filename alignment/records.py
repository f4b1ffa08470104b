"""The rows that travel between stages, and their files: one JSON object a line, strict on the way in.

A row that does not fit is never dropped in silence and never repaired by a guess: `read_records` hands it back as a
`Rejected` with file, line and reason, and the stage writes it to `rejected.jsonl`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1
Split = Literal["train", "heldout"]


class Record(BaseModel):
    """A frozen row with no room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """A conversation that waits for the assistant's answer.

    `kind` groups prompts for reports; `meta` is for whoever made the prompt (a gold judge, say) and is shown to nobody.
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
        """The conversation as plain text, for people and for logs: a single question stands alone."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in self.messages)


class Document(Record):
    """A piece of pretraining text: plain text, or a conversation (a forum thread, say) that keeps its turns."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def _one_of_them(self) -> "Document":
        if bool(self.text) == bool(self.messages):
            raise ValueError("a document has either `text` or `messages`")
        return self

    @property
    def plain(self) -> str:
        """The words alone."""
        return self.text or "\n".join(message.content for message in self.messages)


class Demonstration(Record):
    """A prompt with an answer that a person wrote."""

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    completion: str = Field(min_length=1)
    source: str = ""


class Response(Record):
    """One sampled answer. `id` is opaque: it says nothing of the model, the order or the score."""

    id: str = Field(min_length=1)
    text: str


class ResponseSet(Record):
    """A prompt with the distinct responses that are to be judged against each other."""

    prompt: Prompt
    responses: tuple[Response, ...] = Field(min_length=2)


class Comparison(Record):
    """One judgement of one annotator: `chosen` is better than `rejected` for this prompt.

    `strength` is 1 (slightly better) to 3 (much better), 0 for a tie. `annotation_id` and `annotator_id` name where the
    judgement came from; imported data without annotators leaves `annotator_id` empty. `criteria` holds, where the
    annotator rated both responses, the rating of chosen minus that of rejected. `task_uid` is the task that was shown,
    and `chosen_first` says whether chosen stood before rejected there (left of it, or above); None when unknown.
    `weight` is how much it counts in training; 1 is a comparison like any other.
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
    """A row that was put aside, with the place it came from and the reason."""

    file: str
    line: int
    reason: str
    row: Any = None


RecordT = TypeVar("RecordT", bound=Record)


def stable_id(prefix: str, *parts: object) -> str:
    """A short opaque id that is the same for the same parts; never a number, so that nothing sorts it as one."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
    return f"{prefix}_{digest[:12]}"


def read_lines(path: Path) -> Iterator[tuple[int, Any | None, str]]:
    """Yield (line number, JSON value, "") or (line number, None, reason) for each non-empty line of a JSONL file."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                yield number, json.loads(raw.decode("utf-8")), ""
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                yield number, None, f"not a line of UTF-8 JSON: {error}"


def read_records(path: Path, kind: type[RecordT]) -> tuple[list[RecordT], list[Rejected]]:
    """Read a JSONL file of `kind`; rows that do not fit come back as the second list."""
    good: list[RecordT] = []
    bad: list[Rejected] = []
    for number, row, reason in read_lines(path):
        if reason:
            bad.append(Rejected(file=str(path), line=number, reason=reason))
            continue
        try:
            good.append(kind.model_validate(row))
        except ValidationError as error:
            bad.append(Rejected(file=str(path), line=number, reason=first_problem(error), row=row))
    return good, bad


def first_problem(error: ValidationError) -> str:
    """The first complaint of a pydantic error as `path: message`."""
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'row'}: {detail['msg'].removeprefix('Value error, ')}"


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSONL in one move (a reader sees the whole file or none); return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, start=1):  # noqa: B007
            file.write(record.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return count
