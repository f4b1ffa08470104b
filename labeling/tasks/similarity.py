"""Text similarity: near-duplicate responses, and differences between policies. Pure functions.

Texts are compared by their shingles, runs of a few tokens: r(A, B) = |S(A) ∩ S(B)| / |S(A) ∪ S(B)| (Broder 1997, "On
the resemblance and containment of documents", section 2).
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import product
from statistics import fmean

TOKEN = re.compile(r"\n[ \t]*|\w+|[^\w\s]")
NUMBER = re.compile(r"\d+")
WIDTH = 5
NEAR = 0.95

Shingles = frozenset[tuple[str, ...]]


def plain(text: str) -> str:
    """The text without what nobody judges: case, spaces inside and after lines, empty lines, a full stop at the end.

    Indentation stays, since it carries meaning in code.
    """
    lines = unicodedata.normalize("NFKC", text).casefold().splitlines()
    folded = [line[: len(line) - len(line.lstrip())] + " ".join(line.split()) for line in lines if line.strip()]
    return "\n".join(folded).strip().rstrip(".")


def shingles(text: str, width: int = WIDTH) -> Shingles:
    """All runs of `width` tokens (words, marks, line breaks with the indentation after them); a shorter text is one."""
    tokens = TOKEN.findall(text)
    if len(tokens) <= width:
        return frozenset({tuple(tokens)})
    return frozenset(tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1))


def resemblance(one: Shingles, other: Shingles) -> float:
    """r(A, B), from 0 (nothing in common) to 1 (the same runs)."""
    return len(one & other) / len(one | other)


def nearly_same(one: str, other: str) -> bool:
    """Whether two texts are near-duplicates, which nobody is asked to compare.

    They differ in what `plain` takes away, or their resemblance is at least 0.95 and all numbers are the same. Another
    word touches five runs on each side, so two texts that differ in one word are nearly the same from 199 words on:
    (199 − 9) / (199 + 1) = 0.95.
    """
    one, other = plain(one), plain(other)
    if one == other:
        return True
    if sorted(NUMBER.findall(one)) != sorted(NUMBER.findall(other)):
        return False
    return resemblance(shingles(one), shingles(other)) >= NEAR


def policy_difference(one: Sequence[str], other: Sequence[str]) -> float:
    """How differently two policies answer a prompt, beyond how each varies by itself: 0 when both say the same things.

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y) over all pairs (Gretton et al. 2012, "A Kernel Two-Sample
    Test", equation 5), with k the resemblance of the sets of words, which is a kernel. At most 2.
    """
    mine, theirs = ([shingles(plain(text), 1) for text in texts] for texts in (one, other))

    def mean(left: Sequence[Shingles], right: Sequence[Shingles]) -> float:
        return fmean(resemblance(a, b) for a, b in product(left, right))

    return max(0.0, mean(mine, mine) + mean(theirs, theirs) - 2 * mean(mine, theirs))
