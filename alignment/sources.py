"""Reading what others made: texts, prompts, demonstrations and comparisons from local files or Hugging Face datasets.

Local JSONL (also gzipped) is read line by line, so that a bad row can be named by its line; CSV, Parquet and data sets
of the hub go through `datasets`. Every reader returns the good rows and the rejected ones: none is dropped in silence.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

from pydantic import ValidationError

from alignment.config import RowSource, TextSource
from alignment.errors import ConfigError, DataError
from alignment.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Record,
    Rejected,
    Response,
    first_problem,
    stable_id,
)

TOWN = "town://"
Row = dict[str, Any]
RecordT = TypeVar("RecordT", bound=Record)
SourceT = TypeVar("SourceT", RowSource, TextSource)
NumberedRow = tuple[int, Any, str]  # line or row number, value, reason why it could not be read


class BadRow(ValueError):
    """A row that does not fit; the text is the reason that goes to `rejected.jsonl`."""


def locate(path: str, town: Path | None, origin: str = "") -> Path | None:
    """The file a source names, or None for a data set of the hub. Raises DataError, with its origin, for neither."""
    if path.startswith(TOWN):
        if town is None:
            raise ConfigError(f"{path!r} names a file of the town, but the recipe has no `town:` section")
        return town / path.removeprefix(TOWN)
    if Path(path).exists():
        return Path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).suffix:
        return None
    had = f"it is {origin}" if origin else "give a file, or a data set as owner/name"
    raise DataError(f"{path!r} does not exist (looked from {Path.cwd()}); {had}")


def read_documents(source: TextSource, town: Path | None = None) -> tuple[list[Document], list[Rejected]]:
    """The documents of a source: paragraphs of a plain file, or rows with a text column or with `messages`."""
    path = locate(source.path, town, source.origin)
    if path is not None and path.suffix in (".txt", ".md", ""):
        paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
        return [Document(text=text) for text in paragraphs if text.strip()], []

    def convert(row: Row, _: TextSource, number: int) -> Document:
        if "messages" in row:
            return Document(messages=tuple(as_messages(row["messages"], "user")))
        text = row.get(source.text_field)
        if not isinstance(text, str) or not text.strip():
            raise BadRow(f"no text under {source.text_field!r} and no `messages`")
        return Document(text=text)

    return convert_rows(read_rows(source.path, path), source, convert)


def read_rows(name: str, path: Path | None, key: str = "") -> Iterator[NumberedRow]:
    """Numbered rows of a file or hub data set."""
    if path is not None and path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from read_json_lines(path)
    elif path is not None and path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content[key] if key else content
        if not isinstance(rows, list):
            raise DataError(f"{name}: expected a list of rows; name the key that holds them with `rows:`")
        yield from ((number, row, "") for number, row in enumerate(rows, start=1))
    else:
        yield from ((number, row, "") for number, row in enumerate(load_table(name, path), start=1))


def read_json_lines(path: Path) -> Iterator[NumberedRow]:
    """Like `records.read_lines`, gzipped files too."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                yield number, json.loads(raw.decode("utf-8")), ""
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                yield number, raw[:200].decode("utf-8", "replace"), f"not a line of UTF-8 JSON: {error}"


def load_table(name: str, path: Path | None) -> Iterator[Row]:
    """Rows of a CSV or Parquet file or of a data set of the hub, through `datasets`."""
    import datasets

    if path is None:
        return iter(datasets.load_dataset(name, split="train"))
    builders = {".csv": "csv", ".parquet": "parquet"}
    if path.suffix not in builders:
        raise DataError(f"{name}: do not know how to read {path.suffix!r}; use .jsonl, .json, .csv, .parquet or .txt")
    return iter(datasets.load_dataset(builders[path.suffix], data_files=str(path), split="train"))


def read_as(
    source: RowSource, convert: Callable[[Row, RowSource, int], RecordT], town: Path | None
) -> tuple[list[RecordT], list[Rejected]]:
    """Convert each row of a source, up to its limit; rows that cannot be converted are rejected with the reason."""
    rows = read_rows(source.path, locate(source.path, town, source.origin), source.rows)
    return convert_rows(rows, source, convert, source.limit or None)


def convert_rows(
    rows: Iterator[NumberedRow],
    source: SourceT,
    convert: Callable[[Row, SourceT, int], RecordT],
    limit: int | None = None,
) -> tuple[list[RecordT], list[Rejected]]:
    """The good rows, at most `limit`, and the rejected ones."""
    good: list[RecordT] = []
    bad: list[Rejected] = []
    for number, row, reason in rows:
        if limit is not None and len(good) >= limit:
            break
        try:
            if reason or not isinstance(row, dict):
                raise BadRow(reason or f"expected an object, found {type(row).__name__}")
            good.append(convert(row, source, number))
        except ValidationError as error:
            bad.append(Rejected(file=source.path, line=number, reason=first_problem(error), row=row))
        except BadRow as error:
            bad.append(Rejected(file=source.path, line=number, reason=str(error), row=row))
    return good, bad


# --- rows to records -------------------------------------------------------------------------------------------------


def to_prompt(row: Row, source: RowSource, number: int) -> Prompt:
    """A prompt from any supported shape; what comes after the prompt is ignored."""
    if source.format == "records":
        return Prompt.model_validate(row)
    if source.format == "template":
        return make_prompt([Message(role="user", content=fill(source.prompt, row))])
    if source.format == "hh":
        return make_prompt(parse_transcript(str(row.get("chosen", "")))[0])
    if "messages" in row:
        return make_prompt(split_messages(row["messages"])[0])
    if "prompt" in row:
        return make_prompt(as_messages(row["prompt"], "user"))
    if "chosen" in row and "rejected" in row:
        return to_comparison(row, source, number).prompt
    raise BadRow(f"no `prompt` or `messages` among {sorted(row)}")


def to_demonstration(row: Row, source: RowSource, number: int) -> Demonstration:
    """A demonstration from any supported shape."""
    if source.format == "records":
        return Demonstration.model_validate(row)
    if source.format == "template":
        messages = [Message(role="user", content=fill(source.prompt, row))]
        completion = fill(source.completion, row)
    elif "messages" in row:
        messages, completion = split_messages(row["messages"])
    elif "prompt" in row and "completion" in row:
        messages, completion = as_messages(row["prompt"], "user"), only_text(row["completion"])
    else:
        raise BadRow(f"no `messages` or `prompt` and `completion` among {sorted(row)}")
    if not completion.strip():
        raise BadRow("the completion is empty")
    identity = stable_id("d", source.path, number)
    return Demonstration(id=identity, messages=tuple(messages), completion=completion.strip(), source=source.path)


def to_comparison(row: Row, source: RowSource, number: int) -> Comparison:
    """A comparison from Anthropic's transcripts or TRL's preference shapes (explicit or implicit prompt)."""
    if source.format == "records":
        return Comparison.model_validate(row)
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(f"no `chosen` and `rejected` among {sorted(row)}")
    if source.format == "hh":
        (messages, chosen), (other, rejected) = (
            parse_transcript(str(row["chosen"])),
            parse_transcript(str(row["rejected"])),
        )
    elif "prompt" in row:
        messages = other = as_messages(row["prompt"], "user")
        chosen, rejected = only_text(row["chosen"]), only_text(row["rejected"])
    else:
        (messages, chosen), (other, rejected) = split_messages(row["chosen"]), split_messages(row["rejected"])
    if messages != other:
        raise BadRow("chosen and rejected do not share the same prompt")
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are the same")
    prompt = make_prompt(messages)
    return Comparison(
        id=stable_id("c", source.path, number),
        prompt=prompt,
        chosen=make_response(prompt, chosen),
        rejected=make_response(prompt, rejected),
        annotation_id=f"{Path(source.path).name}:{number}",
    )


def make_prompt(messages: Sequence[Message]) -> Prompt:
    """A prompt whose id is its content."""
    for message in messages:
        if not message.content.strip():
            raise BadRow(f"an empty {message.role} turn")
    return Prompt(id=stable_id("p", *(f"{m.role}:{m.content}" for m in messages)), messages=tuple(messages))


def make_response(prompt: Prompt, text: str) -> Response:
    """A response whose id is its content under the prompt."""
    if not text.strip():
        raise BadRow("an empty response")
    return Response(id=stable_id("r", prompt.id, text.strip()), text=text.strip())


def parse_transcript(transcript: str) -> tuple[list[Message], str]:
    """Split Anthropic's "\\n\\nHuman: … \\n\\nAssistant: …" into the turns before the last answer, and that answer."""
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + transcript.lstrip())
    if parts[0].strip() or len(parts) < 5:
        raise BadRow("not a transcript of Human and Assistant turns")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(role=roles[who], content=said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1].role != "assistant":
        raise BadRow("the transcript does not end with an Assistant turn")
    return turns[:-1], turns[-1].content


def split_messages(value: Any) -> tuple[list[Message], str]:
    """A conversation into what comes before the last answer, and that answer."""
    messages = as_messages(value, "user")
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow("the conversation does not end with an assistant turn after a user's")
    return messages[:-1], messages[-1].content


def as_messages(value: Any, role: str) -> list[Message]:
    """A string as one turn of `role`, or a list of {role, content}."""
    if isinstance(value, str):
        return [Message(role=role, content=value)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"expected text or a list of messages, found {type(value).__name__}")
    return [Message.model_validate(message) for message in value]


def only_text(value: Any) -> str:
    """The answer of a completion given as text or as one assistant message."""
    if isinstance(value, str):
        return value
    messages = as_messages(value, "assistant")
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadRow("expected one assistant message as the answer")
    return messages[0].content


def fill(template: str, row: Row) -> str:
    """Fill "{field}" and "{field[0][sub]}" from a row. Attributes are not reachable: only keys and indices are."""
    try:
        fields = [(field, shape or "") for _, field, shape, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"template {template!r} cannot be read: {error}; write {{{{ for a brace") from error
    for field, shape in fields:
        if "." in field or "__" in field or "{" in shape:
            raise ConfigError(f"template {template!r}: use keys and indices as in {{field[0][key]}}, not {field!r}")
    try:
        return template.format(**row).strip()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadRow(f"template {template!r} does not fit the row: {type(error).__name__} {error}") from error
