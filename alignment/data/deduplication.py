"""Which of the cleaned documents are copies: exact ones by a hash of 128 bits, near ones by MinHash.

The first of each group stays. Memory does not grow with the number of documents: hashes are sorted in partitions of a
fixed size, and what is kept for each document is in files that are mapped into memory.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignment.data.cleaned import BLOCK, CleanedDocuments, Column, Lines
from alignment.data.near_copies import bands, jaccard, shingles
from alignment.records import Document

KEPT, EXACT_COPY, NEAR_COPY = 0, 1, 2
PARTITION = 1 << 21  # documents whose hashes are sorted at a time
CACHED, CACHED_BYTES = 256, 1 << 15  # documents whose shingles are remembered, and the longest of them
MOST_DOCUMENTS = (1 << 32) - 1
Status = NDArray[np.uint8]
Links = NDArray[np.uint32]


def band_names(similarity: float) -> tuple[str, ...]:
    """The columns of the hashes by which near copies are found."""
    return tuple(f"band{number}" for number in range(bands(similarity)[0]))


def mark_copies(documents: CleanedDocuments, similarity: float) -> Status:
    """For each document whether it is kept, or an exact or near copy of one that is."""
    if documents.is_done("copies"):
        return documents.opened("status", np.uint8, (len(documents),))
    status = documents.array("status", np.uint8, (len(documents),))
    lines = documents.lines()
    mark_exact_copies(documents, status, lines)
    names = band_names(similarity)
    if names:
        links = documents.array("links", np.uint32, (len(documents), len(names)))
        for band, name in enumerate(names):
            link_band(documents, status, name, links[:, band])
        mark_near_copies(status, links, lines, similarity)
    lines.close()
    documents.finish("copies")
    return status


def count_states(status: Status) -> list[int]:
    """How many documents are kept, exact copies and near copies."""
    blocks = (status[start : start + BLOCK] for start in range(0, len(status), BLOCK))
    counts = np.zeros(3, np.int64)
    for block in blocks:
        counts += np.bincount(block, minlength=3)
    return [int(count) for count in counts]


def partitions(documents: CleanedDocuments, status: Status, *names: str) -> Iterator[tuple[NDArray[np.int64], Column]]:
    """The documents that are kept so far, with their values in columns: numbers in order, and an array of shape
    (names, n). Documents with the same value in the first column are in the same partition."""
    count = np.uint64(math.ceil(len(documents) / PARTITION))
    for number in range(int(count)):
        numbers: list[NDArray[np.int64]] = []
        values: list[Column] = []
        for blocks in zip(*(documents.blocks(name) for name in names), strict=True):
            start, rows = blocks[0][0], np.stack([block for _, block in blocks])
            here = np.flatnonzero((rows[0] % count == number) & (status[start : start + rows.shape[1]] == KEPT))
            numbers.append(here + start)
            values.append(rows[:, here])
        if any(map(len, numbers)):
            yield np.concatenate(numbers), np.concatenate(values, axis=1)


def mark_exact_copies(documents: CleanedDocuments, status: Status, lines: Lines) -> None:
    """Mark all documents of the same text but the last, which gets the line of the first: a text may also be that of a
    conversation."""
    for numbers, (low, high) in partitions(documents, status, "low", "high"):
        order = np.lexsort((high, low))  # stable: the numbers of the same text stay in order
        numbers, low, high = numbers[order], low[order], high[order]
        same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        ends = np.append(starts[1:], len(numbers)) - 1
        lines.replace(numbers[ends], numbers[starts])
        status[numbers[:-1][same]] = EXACT_COPY


def link_band(documents: CleanedDocuments, status: Status, name: str, links: Links) -> None:
    """Link each document to the last one before it with the same hash of a band: its number plus one, 0 for none."""
    for numbers, (hashes,) in partitions(documents, status, name):
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        links[numbers[order][1:][same]] = numbers[order][:-1][same] + 1


def mark_near_copies(status: Status, links: Links, lines: Lines, similarity: float) -> None:
    """Mark the documents, in order, that are as similar as `similarity` to an earlier one that is kept."""

    def compute(number: int) -> set[str]:
        return shingles(Document.model_validate_json(lines[number]).plain)

    remembered = lru_cache(CACHED)(compute)

    def shingles_of(number: int) -> set[str]:
        return remembered(number) if lines.size(number) <= CACHED_BYTES else compute(number)

    for start in range(0, len(status), BLOCK):
        for number in np.flatnonzero(links[start : start + BLOCK].any(axis=1)).tolist():
            own = shingles_of(start + number)
            others = earlier_candidates(links, status, start + number)
            if any(jaccard(own, shingles_of(other)) >= similarity for other in others):
                status[start + number] = NEAR_COPY


def earlier_candidates(links: Links, status: Status, number: int) -> Iterator[int]:
    """The documents before one that are kept and share a band with it.

    Links lead past copies afterwards, so that a group of many copies is not walked through by each of them.
    """
    seen: set[int] = set()
    for band in np.flatnonzero(links[number]).tolist():
        last, other = number, int(links[number, band]) - 1
        while other >= 0:
            if status[other] == KEPT:
                links[last, band] = other + 1
                last = other
                if other not in seen:
                    seen.add(other)
                    yield other
            other = int(links[other, band]) - 1
        links[last, band] = 0
