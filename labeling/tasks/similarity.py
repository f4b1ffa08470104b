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
    """The text normalised: without case, repeated and trailing spaces, empty lines, and a final full stop.

    Indentation stays, since it carries meaning in code.
    """
    lines = unicodedata.normalize("NFKC", text).casefold().splitlines()
    folded = [line[: len(line) - len(line.lstrip())] + " ".join(line.split()) for line in lines if line.strip()]
    return "\n".join(folded).strip().rstrip(".")


def shingles(text: str, width: int = WIDTH) -> Shingles:
    """All runs of `width` tokens (words, marks, line breaks with the indentation after them), or the whole text."""
    tokens = TOKEN.findall(text)
    if len(tokens) <= width:
        return frozenset({tuple(tokens)})
    return frozenset(tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1))


def resemblance(left: Shingles, right: Shingles) -> float:
    """r(A, B), from 0 (nothing in common) to 1 (the same runs)."""
    return len(left & right) / len(left | right)


def nearly_same(left: str, right: str) -> bool:
    """Whether two texts are near-duplicates, which annotators are not asked to compare.

    They are equal after `plain`, or their resemblance is at least 0.95 and all numbers are the same. Another
    word touches five runs on each side, so two texts that differ in one word are nearly the same from 199 words on:
    (199 − 9) / (199 + 1) = 0.95.
    """
    left, right = plain(left), plain(right)
    if left == right:
        return True
    if sorted(NUMBER.findall(left)) != sorted(NUMBER.findall(right)):
        return False
    return resemblance(shingles(left), shingles(right)) >= NEAR


def policy_difference(left_texts: Sequence[str], right_texts: Sequence[str]) -> float:
    """How differently two policies answer a prompt, beyond the variation within each: 0 for identical responses.

    MMD² = mean k(x, x') + mean k(y, y') − 2 mean k(x, y) over all pairs (Gretton et al. 2012, "A Kernel Two-Sample
    Test", equation 5), with k the resemblance of the sets of words, which is a kernel. At most 2.
    """
    left, right = ([shingles(plain(text), 1) for text in texts] for texts in (left_texts, right_texts))

    def mean(xs: Sequence[Shingles], ys: Sequence[Shingles]) -> float:
        return fmean(resemblance(x, y) for x, y in product(xs, ys))

    return max(0.0, mean(left, left) + mean(right, right) - 2 * mean(left, right))
