"""Cleaned documents on disk, between reading and splitting: their text in a file, columns of figures in others.

Batches are appended and committed one after the other. After a kill the files are cut back to the last commit, and
nothing that was committed is done again. A column is a file of unsigned 64-bit integers, one for each document.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from alignment.artifacts import write_json

Column = NDArray[np.uint64]
BLOCK = 1 << 18  # documents whose figures are read at a time
ITEM = 8  # bytes
COMMIT_SECONDS = 5.0  # at most as much work is lost by a kill


@dataclass(frozen=True)
class Batch:
    """Cleaned documents: a line of JSON each, columns of figures, and how many documents were left out, by reason."""

    text: bytes
    columns: Mapping[str, Column]
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.columns["length"])


class CleanedDocuments:
    """The documents of a directory. `inputs` says what they are made from: those of other inputs are removed."""

    def __init__(self, directory: Path, columns: tuple[str, ...], inputs: str) -> None:
        self.directory = directory
        self._state_file = directory / "state.json"
        self._state = self._read_state(inputs)
        self.is_new = not self._state
        if self.is_new:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            self._state = {"inputs": inputs, "batches": 0, "documents": 0, "bytes": 0, "left_out": {}, "done": []}
        self._files = {name: self._open(f"{name}.u64", ITEM * len(self)) for name in ("length", *columns)}
        self._text = self._open("documents.jsonl", self._state["bytes"])
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self._committed = time.monotonic()

    def _read_state(self, inputs: str) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if state["inputs"] == inputs else {}

    def _open(self, name: str, size: int) -> BinaryIO:
        """A file, cut to its committed size."""
        path = self.directory / name
        path.touch()
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file

    def __len__(self) -> int:
        return int(self._state["documents"])

    @property
    def batches(self) -> int:
        """The number of batches that are committed."""
        return int(self._state["batches"])

    @property
    def bytes(self) -> int:
        """The size of all lines."""
        return int(self._state["bytes"])

    @property
    def left_out(self) -> Counter[str]:
        """How many documents were left out, by reason."""
        return Counter(self._state["left_out"])

    def append(self, batch: Batch) -> None:
        """Write a batch; it is committed within `COMMIT_SECONDS` of work, or by `commit`."""
        self._text.write(batch.text)
        for name, file in self._files.items():
            file.write(batch.columns[name].tobytes())
        self._state |= {
            "batches": self.batches + 1,
            "documents": len(self) + len(batch),
            "bytes": self.bytes + len(batch.text),
            "left_out": {name: count + self.left_out[name] for name, count in batch.left_out.items()},
        }
        if time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Record what is written, once it is on the disk."""
        for file in (self._text, *self._files.values()):
            file.flush()
            os.fsync(file.fileno())
        for array in self._arrays.values():
            array.flush()
        write_json(self._state_file, self._state)
        self._committed = time.monotonic()

    def is_done(self, step: str) -> bool:
        """Whether a step of the work on all documents is finished."""
        return step in self._state["done"]

    def finish(self, step: str) -> None:
        """Record that a step is finished."""
        self._state["done"].append(step)
        self.commit()

    def blocks(self, name: str) -> Iterator[tuple[int, Column]]:
        """A column in blocks, each with the number of its first document."""
        with (self.directory / f"{name}.u64").open("rb") as file:
            for start in range(0, len(self), BLOCK):
                yield start, np.fromfile(file, np.uint64, min(BLOCK, len(self) - start))

    def array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        """An array of zeros in a new file, which the system pages in and out as memory allows."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        self._arrays[name] = np.memmap(path, dtype, "w+", shape=shape)
        return self._arrays[name]

    def opened(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
        """An array that an earlier step wrote."""
        self._arrays[name] = np.memmap(self.directory / name, dtype, "r+", shape=shape)
        return self._arrays[name]

    def lines(self) -> "Lines":
        """The documents by number."""
        return Lines(self)

    def close(self) -> None:
        """Close the files."""
        for file in (self._text, *self._files.values()):
            file.close()


class Lines:
    """The lines of documents by their numbers, read from disk one by one."""

    def __init__(self, documents: CleanedDocuments) -> None:
        shape = (len(documents), 2)
        if documents.is_done("lines"):
            self._places = documents.opened("places", np.uint64, shape)
        else:
            self._places = documents.array("places", np.uint64, shape)
            total = np.uint64(0)
            for start, lengths in documents.blocks("length"):
                ends = np.cumsum(lengths) + total
                self._places[start : start + len(lengths)] = np.stack([ends - lengths, lengths], axis=1)
                total = ends[-1]
            documents.finish("lines")
        self._file = (documents.directory / "documents.jsonl").open("rb")

    def __getitem__(self, number: int) -> bytes:
        start, length = self._places[number].tolist()
        return os.pread(self._file.fileno(), length, start)

    def size(self, number: int) -> int:
        """The bytes of a line."""
        return int(self._places[number, 1])

    def replace(self, numbers: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Put the lines of other documents in the place of some."""
        self._places[numbers] = self._places[others]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
