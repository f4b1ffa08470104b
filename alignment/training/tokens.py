"""Token files: documents as token ids on disk, end to end, mapped into memory and read as rows.

A file holds 32-bit integers. It grows shard by shard; after each one its state is committed, so that a run that was
killed goes on after the last whole shard.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from alignment.artifacts import write_json
from alignment.models.encoding import Unfit
from alignment.records import Document, Rejected, as_line, read_records

Encoded = tuple[Document, list[int]] | Unfit
TEMPORARY = ".tokens-"
BUFFERED = 1 << 20  # tokens that are held before they are written


@dataclass(frozen=True)
class TokenFile:
    """Where token ids are, how many, and of how many documents and bytes of text; and the rows that were put aside."""

    path: Path
    tokens: int
    documents: int
    text_bytes: int
    rejected: Sequence[Rejected]

    def rows(self, context: int) -> tuple[Tensor, int]:
        """The tokens as rows, shape (n, context), mapped into memory, and how many of the last are the first again,
        which fill up the last row."""
        missing = -self.tokens % context
        values = np.memmap(self.path, np.int32, "c", shape=(self.tokens + missing,))
        return torch.from_numpy(values).view(-1, context), missing


def write_tokens(shards: Sequence[Callable[[], Iterable[Encoded]]], path: Path, context: int) -> TokenFile:
    """Write the documents of all shards, and at the end as many of the first tokens again as fill up a row."""
    state = _state(path)
    put_aside = path.with_suffix(".rejected.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in (path, put_aside):
        file.touch()
    os.truncate(path, 4 * state["tokens"])
    os.truncate(put_aside, state["rejected_bytes"])
    for number in range(state["shards"], len(shards)):
        with path.open("ab") as tokens, put_aside.open("ab") as rejected:
            for key, amount in _append(shards[number](), tokens.write, rejected.write).items():
                state[key] += amount
            for written in (tokens, rejected):
                written.flush()
                os.fsync(written.fileno())
        state["shards"] = number + 1
        write_json(path.with_suffix(".json"), state)
    _fill_up(path, state["tokens"], context)
    rows, _ = read_records(put_aside, Rejected)
    return TokenFile(path, state["tokens"], state["documents"], state["text_bytes"], rows)


def _state(path: Path) -> dict[str, int]:
    try:
        state: dict[str, int] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return dict.fromkeys(("shards", "tokens", "documents", "text_bytes", "rejected_bytes"), 0)
    return state


def _append(
    rows: Iterable[Encoded], write: Callable[[bytes], Any], put_aside: Callable[[bytes], Any]
) -> dict[str, int]:
    """Write the tokens of documents, and the rows that do not fit; how much was written."""
    written = dict.fromkeys(("tokens", "documents", "text_bytes", "rejected_bytes"), 0)
    buffer: list[int] = []
    for row in rows:
        if isinstance(row, Unfit):
            line = as_line(row.rejected).encode() + b"\n"
            put_aside(line)
            written["rejected_bytes"] += len(line)
            continue
        document, ids = row
        buffer += ids
        written["documents"] += 1
        written["tokens"] += len(ids)
        written["text_bytes"] += len(document.plain.encode())
        if len(buffer) >= BUFFERED:
            write(np.array(buffer, np.int32).tobytes())
            buffer = []
    write(np.array(buffer, np.int32).tobytes())
    return written


def _fill_up(path: Path, tokens: int, context: int) -> None:
    """Write the first tokens again at the end, as many as fill up the last row."""
    missing = -tokens % context
    os.truncate(path, 4 * tokens)
    if tokens and missing:
        first = np.fromfile(path, np.int32, min(tokens, missing))
        with path.open("ab") as file:
            file.write(np.resize(first, missing).tobytes())


def in_temporary_file(rows: Iterable[Encoded], context: int, near: Path | None = None) -> tuple[TokenFile, Tensor, int]:
    """The tokens of documents in a file that has no name any more: it is removed with the rows."""
    with TemporaryDirectory(dir=near, prefix=TEMPORARY) as folder:
        tokens = write_tokens([lambda: rows], Path(folder) / "tokens", context)
        return (tokens, *(tokens.rows(context) if tokens.tokens else (torch.empty(0, context, dtype=torch.int32), 0)))


def remove_leftovers(near: Path) -> None:
    """Remove the temporary files of a run that was killed."""
    for folder in near.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder)


class TokenRows(Sequence[list[int]]):
    """Rows of a tensor as lists of token ids, each made when it is asked for."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        return self._rows[index].tolist()
