"""The data card: hand-computed counts."""

import pytest

from alignment.records import Comparison, Prompt, Rejected, Response
from labeling.reports.card import as_markdown, make_card, proportion


def row(number: int, strength: int, who: str, chosen: str, rejected: str, first: bool | None) -> Comparison:
    prompt = Prompt.model_validate({"id": f"p{number}", "messages": [{"role": "user", "content": "Q?"}]})
    good, bad = Response(id=chosen, text=chosen), Response(id=rejected, text=rejected)
    return Comparison(
        id=f"c{number}{who}",
        prompt=prompt,
        chosen=good,
        rejected=bad,
        strength=strength,
        annotation_id=f"{number}{who}",
        annotator_id=who,
        chosen_first=first,
    )


ROWS = [
    row(1, 3, "ann", "aaaa", "bb", True),
    row(1, 1, "ben", "aaaa", "bb", True),  # they agree
    row(2, 1, "ann", "a", "bbb", True),
    row(2, 2, "ben", "bbb", "a", False),  # they do not
    row(3, 0, "ann", "aa", "bb", False),
    row(4, 1, "ben", "aa", "bb", None),
]


def card(rows: list[Comparison]):
    rejected = [Rejected(file="f", line=n, reason=reason) for n, reason in enumerate(("b|ad", "worse", "b|ad"))]
    return make_card(
        "comparisons-1",
        rows,
        rejected,
        splits={"train": 4},
        guidelines={"pairwise": "1a2b3c4d"},
        projects={"pairwise": "http://127.0.0.1/projects/1"},
        sources={"a.jsonl": "ff"},
    )


def test_counts_are_those_of_the_rows() -> None:
    found = card(ROWS)
    assert (found.comparisons, found.ties, found.prompts, found.responses, found.annotations) == (5, 1, 4, 8, 6)
    assert found.annotators == {"ann": 3, "ben": 3}
    assert found.strengths == {"tie": 1, "slightly better": 3, "better": 1, "much better": 1}
    assert (found.agreement.count, found.agreement.share) == (2, 0.5)
    assert found.quarantined == {"b|ad": 2, "worse": 1}
    assert (found.first_chosen.count, found.first_chosen.share) == (4, 0.75)  # the one of unknown order does not count


def test_lengths_leave_ties_out() -> None:
    lengths = card(ROWS).lengths
    assert lengths is not None
    # chosen 4 4 1 3 2, rejected 2 2 3 1 2
    assert (lengths.chosen_mean, lengths.rejected_mean) == (2.8, 2.0)
    assert (lengths.chosen_median, lengths.rejected_median) == (3.0, 2.0)
    assert (lengths.longer_chosen.count, lengths.longer_chosen.share) == (4, 0.75)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # p̂ = 0.75, n = 4, z = 1.959964: centre (p̂ + z²/2n)/(1 + z²/n), half-width z√(p̂(1−p̂)/n + z²/4n²)/(1 + z²/n)
    found = proportion([True, True, True, False])
    assert found.low == pytest.approx(0.300642, abs=1e-5) and found.high == pytest.approx(0.954413, abs=1e-5)


def test_the_card_reads_as_tables() -> None:
    text = as_markdown(card(ROWS))
    for said in (
        "# Comparisons comparisons-1",
        "| comparisons with a winner | 5 |",
        "| ties (not counted above) | 1 |",
        "| two annotators name the same winner | 0.500 |",
        "| first response shown is chosen | 0.750 | 0.301 to 0.954 | 4 |",
        "| pairwise | 1a2b3c4d |",
        "| b\\|ad | 2 |",
        "| train | 4 |",
        "| a.jsonl | ff |",
        "| ann | 3 |",
    ):
        assert said in text, text


def test_a_data_set_of_others_says_what_is_not_known() -> None:
    prompt = Prompt.model_validate({"id": "p", "messages": [{"role": "user", "content": "Q?"}]})
    one = Comparison(id="c", prompt=prompt, chosen=Response(id="a", text="a"), rejected=Response(id="b", text="b"))
    found = make_card("x", [one], [], splits={}, guidelines={}, projects={}, sources={})
    text = as_markdown(found)
    assert found.lengths is not None and found.lengths.longer_chosen.share is None
    assert "| annotators | unknown |" in text and "not measured" in text and "## Annotators" not in text
    nothing = make_card("x", [], [], splits={}, guidelines={}, projects={}, sources={})
    assert "| ties (not counted above) | 0 |" in as_markdown(nothing)
