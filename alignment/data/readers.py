"""Readers of external data: texts, prompts, demonstrations and comparisons from local files or Hugging Face datasets.

Local JSONL (also gzipped) is read line by line, so that a bad row is reported with its line; CSV, Parquet and data sets
of the hub are read by `datasets`. Every reader returns the valid and the rejected rows: none is dropped silently.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from alignment.config.stages import RowSource, TextSource
from alignment.data.conversations import (
    BadRow,
    Row,
    as_messages,
    fill,
    make_prompt,
    make_response,
    only_text,
    parse_transcript,
    split_messages,
)
from alignment.data.rankings import Group, from_scores, from_tree, scores_prompt, tree_demonstration, tree_prompt
from alignment.data.trl_format import OURS, from_preference
from alignment.errors import ConfigError, DataError
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
RecordT = TypeVar("RecordT", bound=Record)
SourceT = TypeVar("SourceT", RowSource, TextSource)
NumberedRow = tuple[int, Any, str]  # line or row number, value, reason why it could not be read


def locate(path: str, town: Path | None, origin: str = "") -> Path | None:
    """The file of a source, or None for a data set of the hub. Raises DataError, with its origin, if it is neither."""
    if path.startswith(TOWN):
        if town is None:
            raise ConfigError(f"{path!r} names a file of the town, but the recipe has no `town:` section")
        return town / inside(path, TOWN)
    if Path(path).exists():
        return Path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).suffix:
        return None
    remedy = f"it is {origin}" if origin else "give a file, or a data set as owner/name"
    raise DataError(f"{path!r} does not exist (relative to {Path.cwd()}); {remedy}")


def inside(path: str, scheme: str) -> str:
    """The path after a scheme, relative to the scheme's root. Raises ConfigError for a path outside it."""
    name = PurePosixPath(path.removeprefix(scheme))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ConfigError(f"{path!r} leads out of {scheme}: name a file below it, as in {scheme}texts/one.jsonl")
    return str(name)


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
    """Like `records.read_lines`, also for gzipped files."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                yield number, json.loads(raw.decode("utf-8")), ""
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                yield number, raw[:200].decode("utf-8", "replace"), f"not a line of UTF-8 JSON: {error}"


def load_table(name: str, path: Path | None) -> Iterator[Row]:
    """Rows of a CSV or Parquet file or of a data set of the hub, by `datasets`."""
    import datasets

    if path is None:
        return iter(datasets.load_dataset(name, split="train"))
    builders = {".csv": "csv", ".parquet": "parquet"}
    if path.suffix not in builders:
        raise DataError(
            f"{name}: the format {path.suffix!r} is not supported; use .jsonl, .json, .csv, .parquet or .txt"
        )
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
    """The converted rows, at most `limit`, and the rejected ones."""
    good: list[RecordT] = []
    bad: list[Rejected] = []
    for number, row, reason in rows:
        if limit is not None and len(good) >= limit:
            break
        try:
            if reason or not isinstance(row, dict):
                raise BadRow(reason or f"expected an object, not {type(row).__name__}")
            good.append(convert(row, source, number))
        except ValidationError as error:
            bad.append(Rejected(file=source.path, line=number, reason=first_problem(error), row=row))
        except BadRow as error:
            bad.append(Rejected(file=source.path, line=number, reason=str(error), row=row))
    return good, bad


# --- rows to records -------------------------------------------------------------------------------------------------


def to_prompt(row: Row, source: RowSource, number: int) -> Prompt:
    """A prompt from a row in any supported format; what comes after the prompt is ignored."""
    if source.format == "records":
        return Prompt.model_validate(row)
    if source.format == "template":
        return make_prompt([Message(role="user", content=fill(source.prompt, row))])
    if source.format == "hh":
        return make_prompt(parse_transcript(str(row.get("chosen", "")))[0])
    if source.format == "oasst":
        return tree_prompt(row)
    if source.format == "scores":
        return scores_prompt(row)
    if "messages" in row:
        return make_prompt(split_messages(row["messages"])[0])
    if "prompt" in row:
        return make_prompt(as_messages(row["prompt"], "user"))
    if "chosen" in row and "rejected" in row:
        return to_comparison(row, source, number).prompt
    raise BadRow(f"no `prompt` or `messages` among {sorted(row)}")


def to_demonstration(row: Row, source: RowSource, number: int) -> Demonstration:
    """A demonstration from a row in any supported format."""
    if source.format == "records":
        return Demonstration.model_validate(row)
    if source.format == "template":
        messages = [Message(role="user", content=fill(source.prompt, row))]
        completion = fill(source.completion, row)
    elif source.format == "oasst":
        messages, completion = tree_demonstration(row)
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


def read_comparisons(source: RowSource, town: Path | None) -> tuple[list[Comparison], list[Rejected]]:
    """All comparisons of a source; a row with several responses yields all their pairs. The limit counts rows."""
    groups, bad = read_as(source, to_comparisons, town)
    good = [comparison for group in groups for comparison in group.comparisons]
    return good, sorted([*bad, *(part for group in groups for part in group.rejected)], key=lambda row: row.line)


def to_comparisons(row: Row, source: RowSource, number: int) -> Group:
    """The comparisons of a row in any supported format."""
    if source.format == "oasst":
        return from_tree(row, source.path, number)
    if source.format == "scores":
        return from_scores(row, source.path, number)
    return Group(comparisons=(to_comparison(row, source, number),))


def to_comparison(row: Row, source: RowSource, number: int) -> Comparison:
    """A comparison from Anthropic's transcripts, TRL's preference formats, or a row of `to_preference`."""
    if source.format == "records":
        return Comparison.model_validate(row)
    if source.format == "auto" and row.get(OURS):
        try:
            return from_preference(row)
        except (TypeError, json.JSONDecodeError) as error:
            raise BadRow(f"an exported row that was changed: {error}") from error
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(f"no `chosen` and `rejected` among {sorted(row)}")
    if "prompt" in row and source.format != "hh":
        messages = other = as_messages(row["prompt"], "user")
        chosen, rejected = only_text(row["chosen"]), only_text(row["rejected"])
    else:
        (messages, chosen), (other, rejected) = (
            parse_transcript(str(side)) if source.format == "hh" or isinstance(side, str) else split_messages(side)
            for side in (row["chosen"], row["rejected"])
        )
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
