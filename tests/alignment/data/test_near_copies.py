"""Near copies by word 5-grams: figures by hand, and hashes that find what is alike."""

import numpy as np
import pytest

from alignment.data import near_copies
from alignment.data.near_copies import band_hashes, bands, gram_hashes, jaccard, shingles, word_hashes


def test_jaccard_of_shingles_by_hand() -> None:
    a, b = "one two three four five six seven", "one two three four five six eight"
    assert shingles(a) == {"one two three four five", "two three four five six", "three four five six seven"}
    assert jaccard(shingles(a), shingles(b)) == 2 / 4
    assert shingles("Too SHORT") == {"too short"} and jaccard({"x"}, {"y"}) == 0


def test_hashes_are_those_of_words_in_lower_case_whatever_the_blanks() -> None:
    assert np.array_equal(word_hashes("The  Cat\u00a0sat\n"), word_hashes("the cat sat"))
    assert len(word_hashes("")) == 0 and len(word_hashes("x" * 100)) == 1
    assert len(gram_hashes(word_hashes("a b c d e f g"), 5)) == 3 and len(gram_hashes(word_hashes("a b"), 5)) == 1
    assert len({*gram_hashes(word_hashes("a b c d e f a b c d e"), 5).tolist()}) == 6  # of 7, one comes twice


def test_long_texts_are_hashed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "some words\u2003and  more " * 50 + "y" * 400 + " end"
    whole = word_hashes(text)
    monkeypatch.setattr(near_copies, "PIECE", 37)
    assert np.array_equal(word_hashes(text), whole)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9, 0.95])
def test_the_bands_find_pairs_at_the_threshold(similarity: float) -> None:
    count, rows = bands(similarity)
    assert count * rows <= near_copies.PERMUTATIONS
    size, found = 400, 0
    shared = round(2 * size * similarity / (1 + similarity))
    random = np.random.default_rng(1)
    for _ in range(300):
        a = random.integers(0, 1 << 64, size, dtype=np.uint64)
        b = np.concatenate([a[:shared], random.integers(0, 1 << 64, size - shared, dtype=np.uint64)])
        found += bool((band_hashes(a, count, rows) == band_hashes(b, count, rows)).any())
    assert found >= 0.98 * 300  # 99.5 % are expected: fewer than 98 % in one of 300 cases


def test_no_bands_where_only_exact_copies_are_dropped() -> None:
    assert bands(1.0)[0] == 0
