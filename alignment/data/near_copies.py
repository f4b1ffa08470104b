"""Near copies: MinHash with banding finds pairs of documents that may be alike (Broder 1997), exact Jaccard similarity
of their word 5-grams decides.

Hashes are functions of the text alone, the same in every process. A word is hashed once (CRC-32), an n-gram is a sum of
its words' hashes times odd numbers, mixed, and MinHash is arithmetic on arrays.
"""

import re
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
SHINGLE_WORDS = 5
PERMUTATIONS = 128
RECALL = 0.995
PIECE = 1 << 20  # characters hashed at a time: the words of a text take ten times its memory
BLOCK = 4096  # shingles permuted at a time
_random = np.random.Generator(np.random.PCG64(20200))
MULTIPLIERS = _random.integers(0, 1 << 63, 64, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
SLOPES = _random.integers(0, 1 << 31, (PERMUTATIONS, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
OFFSETS = _random.integers(0, 1 << 32, (PERMUTATIONS, 1), dtype=np.uint32)


def shingles(text: str) -> set[str]:
    """The word 5-grams of a text, in lower case; a shorter text is a single shingle."""
    words = text.lower().split()
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    return len(a & b) / len(a | b)


def bands(similarity: float) -> tuple[int, int]:
    """The number b of bands and r of hashes in each: the widest bands that find `RECALL` of the pairs at the threshold.

    A pair of similarity s shares a band with probability 1 − (1 − s^r)^b; wider bands give fewer false candidates.
    Pairs are not looked for at a similarity of 1.
    """
    if similarity >= 1:
        return 0, 1
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


def word_hashes(text: str) -> Hashes:
    """A hash of each word of a text, in lower case."""
    parts = [_hashes(piece) for piece in _pieces(text)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _hashes(text: str) -> Hashes:
    words = text.lower().split()
    return np.fromiter(map(zlib.crc32, " ".join(words).encode().split(b" ")), np.uint64) if words else np.empty(0, "u8")


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that end at blanks."""
    start = 0
    blank = re.compile(r"\s")
    while len(text) - start > PIECE and (end := blank.search(text, start + PIECE)):
        yield text[start : end.start()]
        start = end.start()
    yield text[start:]


def gram_hashes(words: Hashes, length: int) -> Hashes:
    """A hash of each n-gram of words; a shorter text is a single one."""
    length = min(length, len(words))
    count = len(words) - length + 1
    total = np.zeros(count, np.uint64)
    for offset in range(length):
        total += words[offset : offset + count] * MULTIPLIERS[offset]
    return _mixed(total)


def _mixed(values: Hashes) -> Hashes:
    """Hashes whose bits all depend on all bits of the values (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def band_hashes(grams: Hashes, count: int, rows: int) -> Hashes:
    """A hash of each of `count` bands of the text's MinHash, from the hashes of its shingles."""
    values = (grams >> np.uint64(32)).astype(np.uint32)
    slopes, offsets = SLOPES[: count * rows], OFFSETS[: count * rows]
    smallest = np.full(count * rows, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(values), BLOCK):
        permuted = slopes * values[start : start + BLOCK]
        permuted += offsets
        np.minimum(smallest, permuted.min(axis=1), out=smallest)
    return _mixed((smallest.reshape(count, rows).astype(np.uint64) * MULTIPLIERS[np.arange(rows) % 64]).sum(axis=1))
