"""Stage `corpus`: raw text to clean, deduplicated, split documents.

Everything is streamed: documents are read in batches, cleaned and hashed by a process for each core and appended to
files (`alignment.data.cleaned`); copies are found by sorting hashes (`alignment.data.deduplication`); the split is
drawn and written. Memory does not grow with the text. A killed run goes on after its last commit.
"""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import cast

import numpy as np

from alignment.config.stages import CorpusConfig
from alignment.data.cleaned import Batch, CleanedDocuments
from alignment.data.cleaning import clean
from alignment.data.deduplication import KEPT, Status, band_names, count_states, mark_copies
from alignment.data.filters import language_identifier, reason_to_leave_out, reasons, write_evaluation
from alignment.data.near_copies import SHINGLE_WORDS, band_hashes, bands, gram_hashes, word_hashes
from alignment.data.readers import local_files, stream_documents
from alignment.data.rejected import RejectedFile
from alignment.data.used_columns import SourceNotes, write_notes
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.parallel import ordered_map
from alignment.progress import Progress, progress
from alignment.records import Document, Rejected, as_line, write_lines

BATCH_CHARACTERS = 4 << 20
SHARD_BYTES = 256 << 20
COMPRESSED = (".gz", ".parquet")  # files whose size says little of how much text they hold
FORMAT = 1  # of the working files: raised when a run cannot go on from those of an earlier version


def prepare_corpus(
    config: CorpusConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    town: Path | None = None,
    prompts: Path | None = None,
) -> dict[str, float]:
    """Read all sources, clean and filter them, drop exact and near copies, and write `train.jsonl` and `heldout.jsonl`.

    A large split continues in `train-00001.jsonl` and so on. Rows that cannot be read go to `rejected.jsonl`; more of
    them than `max_rejected_share` is an error. Started again in the same directory after a kill, it uses what was done.
    `prompts` is the output of the stage of that name, if documents with its held-out prompts are to be left out.
    """
    columns = ("characters", "low", "high", *band_names(config.near_duplicate_similarity))
    documents = CleanedDocuments(out / "work", columns, describe_inputs(config, seed, town, prompts))
    if documents.is_new:
        for name in ("train", "heldout"):
            for path in out.glob(f"{name}*.jsonl"):
                path.unlink()
    rejected = RejectedFile(out / "rejected.jsonl")
    clean_lines = partial(clean_batch, config, prepare_filters(config, documents.directory, journal, town, prompts))
    read = read_sources(config, clean_lines, documents, rejected, journal, town)
    rejected.check(read, config.max_rejected_share, "corpus")
    status = mark_copies(documents, config.near_duplicate_similarity) if len(documents) else np.empty(0, np.uint8)
    kept, exact, near = count_states(status)
    if kept < 2:
        raise DataError(f"only {kept} documents are left of {read}; check `corpus.sources` and `min_characters`")
    heldout = max(1, round(kept * config.heldout_share))
    write_splits(documents, shuffled(documents, status, kept, seed), heldout, out)
    counts = {
        "read": read,
        "rejected": rejected.count,
        **documents.left_out,
        "exact_copies": exact,
        "near_copies": near,
        "documents_train": kept - heldout,
        "documents_heldout": heldout,
        "characters": sum(
            int(block[status[start : start + len(block)] == KEPT].sum())
            for start, block in documents.blocks("characters")
        ),
    }
    documents.close()
    shutil.rmtree(documents.directory)
    journal.log(counts, step=0)
    return {name: float(count) for name, count in counts.items()}


def describe_inputs(config: CorpusConfig, seed: int, town: Path | None, prompts: Path | None) -> str:
    """What the working files of a run depend on: the options, and the sizes and times of the files that are read."""
    files = [path for source in config.files for path in local_files(source, town)]
    files += [] if prompts is None else [prompts / "prompts.jsonl"]
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([FORMAT, BATCH_CHARACTERS, seed, config.model_dump(mode="json"), stamps])


def prepare_filters(
    config: CorpusConfig, directory: Path, journal: Journal, town: Path | None, prompts: Path | None
) -> Path:
    """Write what the filters need to a file, and return its path."""
    path = directory / "evaluation.npz"
    if config.language is not None:
        language_identifier()
    if config.decontamination is not None:
        short = write_evaluation(config.decontamination, path, town, prompts)
        if short:
            least = config.decontamination.min_words
            journal.note("decontamination", [f"{short} texts of fewer than {least} words are not looked for"])
    return path


def read_sources(
    config: CorpusConfig,
    clean_lines: Callable[[Sequence[str]], Batch],
    documents: CleanedDocuments,
    rejected: RejectedFile,
    journal: Journal,
    town: Path | None,
) -> int:
    """Read and clean all sources into `documents`, put rows that cannot be read aside, and return the number of the
    others. Batches that are there already are read again, but not cleaned."""
    notes = [(source.path, SourceNotes("corpus")) for source in config.sources]
    streams = (stream_documents(source, town, note) for source, (_, note) in zip(config.sources, notes, strict=True))
    files = [path for source in config.sources for path in local_files(source, town)]
    compressed = any(path.suffix in COMPRESSED for path in files)
    total = 0 if compressed else sum(path.stat().st_size for path in files)
    with progress("corpus", total or None, "B") as shown:
        good = Good((row for stream in streams for row in stream), rejected)
        batches = batched(good, documents.batches, shown)
        for batch in ordered_map(clean_lines, batches):
            documents.append(batch)
    documents.commit()
    write_notes(journal, notes)
    return good.count


class Good:
    """The lines of the documents among rows that are read; the others go to a file."""

    def __init__(self, rows: Iterable[Document | Rejected], rejected: RejectedFile) -> None:
        self._rows, self._rejected, self.count = rows, rejected, 0

    def __iter__(self) -> Iterator[str]:
        for row in self._rows:
            if isinstance(row, Rejected):
                self._rejected.add(row)
            else:
                self.count += 1
                yield as_line(row)


def batched(lines: Iterable[str], done: int, shown: Progress) -> Iterator[list[str]]:
    """The lines in lists of about as many characters, without the first `done` lists."""
    batch: list[str] = []
    size = number = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size >= BATCH_CHARACTERS:
            yield from _counted(batch, number < done, size, shown)
            batch, size, number = [], 0, number + 1
    if batch:
        yield from _counted(batch, number < done, size, shown)


def _counted(batch: list[str], is_done: bool, size: int, shown: Progress) -> Iterator[list[str]]:
    (shown.skip if is_done else shown.add)(size)
    if not is_done:
        yield batch


def clean_batch(config: CorpusConfig, evaluation: Path, lines: Sequence[str]) -> Batch:
    """Clean documents, leave out short ones and those that the filters name, and hash what decides whether they are
    copies."""
    left_out = Counter(dict.fromkeys(("too_short", *reasons(config)), 0))
    kept: list[Document] = []
    for document in map(clean_document, map(Document.model_validate_json, lines)):
        if document is None or len(document.plain) < config.min_characters:
            left_out["too_short"] += 1
        elif reason := reason_to_leave_out(document.plain, config, evaluation):
            left_out[reason] += 1
        else:
            kept.append(document)
    texts = [document.plain for document in kept]
    written = [as_line(document).encode() + b"\n" for document in kept]
    digests = np.frombuffer(b"".join(blake2b(t.encode(), digest_size=16).digest() for t in texts), np.uint64)
    columns = {
        "length": np.array([len(line) for line in written], np.uint64),
        "characters": np.array([len(text) for text in texts], np.uint64),
        "low": digests[::2],
        "high": digests[1::2],
    }
    count, width = bands(config.near_duplicate_similarity)
    if count:
        hashed = [band_hashes(gram_hashes(word_hashes(text), SHINGLE_WORDS), count, width) for text in texts]
        rows = np.array(hashed, np.uint64).reshape(len(texts), count)
        columns |= {f"band{number}": rows[:, number] for number in range(count)}
    return Batch(b"".join(written), columns, left_out)


def clean_document(document: Document) -> Document | None:
    """The document with cleaned text; None if it, or any of its turns, is empty then."""
    if document.text:
        text = clean(document.text)
        return Document(text=text) if text else None
    turns = tuple(m.model_copy(update={"content": clean(m.content)}) for m in document.messages)
    return Document(messages=turns) if all(m.content for m in turns) else None


def shuffled(documents: CleanedDocuments, status: Status, kept: int, seed: int) -> "memoryview[int]":
    """The numbers of the documents that are kept, in random order."""
    order = documents.array("order", np.int64, (kept,))
    filled = 0
    for start, block in documents.blocks("length"):
        numbers = np.flatnonzero(status[start : start + len(block)] == KEPT) + start
        order[filled : filled + len(numbers)] = numbers
        filled += len(numbers)
    view = order.data
    random.Random(f"corpus-{seed}").shuffle(cast(MutableSequence[int], view))
    return view


def write_splits(documents: CleanedDocuments, order: "memoryview[int]", heldout: int, out: Path) -> None:
    """Write the first `heldout` documents and the others, in files of about `SHARD_BYTES`; finished ones stay."""
    lines = documents.lines()
    mean = documents.bytes / len(documents)
    with progress("corpus: shards", len(order), "documents") as shown:
        for name, numbers in (("heldout", order[:heldout]), ("train", order[heldout:])):
            size = math.ceil(len(numbers) / math.ceil(len(numbers) * mean / SHARD_BYTES))
            for shard, start in enumerate(range(0, len(numbers), size)):
                path = out / (f"{name}-{shard:05d}.jsonl" if shard else f"{name}.jsonl")
                part = numbers[start : start + size]
                if path.exists():
                    shown.skip(len(part))
                    continue
                write_lines(path, map(lines.__getitem__, part))
                shown.add(len(part))
    lines.close()
