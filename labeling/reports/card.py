"""The data card of a set of comparisons, as JSON and as Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from scipy.stats import binomtest

from alignment.records import Comparison, Record, Rejected
from labeling.quality.agreement import agreement
from labeling.quality.results import Rate
from labeling.quality.screening import SetAside

CONFIDENCE = 0.95
STRENGTHS = {0: "tie", 1: "slightly better", 2: "better", 3: "much better"}


class Lengths(Record):
    """Characters of chosen and rejected, and how often the longer one was chosen where the lengths differ."""

    chosen_mean: float
    chosen_median: float
    rejected_mean: float
    rejected_median: float
    longer_chosen: Rate


class Card(Record):
    """Content and origin of a set of comparisons.

    `first_chosen` is how often the response shown first won: near 0.5 without position bias. `guidelines` maps each
    kind of task to the hash of its label config, which contains the guidelines; `quarantined` counts rows that could
    not be parsed, and `set_aside` comparisons excluded by screening or adjudication, by reason.
    """

    name: str
    comparisons: int
    ties: int
    prompts: int
    responses: int
    annotations: int
    annotators: dict[str, int]
    strengths: dict[str, int]
    splits: dict[str, int]
    agreement: Rate
    alpha: float | None
    lengths: Lengths | None
    first_chosen: Rate
    guidelines: dict[str, str]
    projects: dict[str, str]
    sources: dict[str, str]
    quarantined: dict[str, int]
    set_aside: dict[str, int] = Field(default_factory=dict)


def make_card(
    name: str,
    rows: Sequence[Comparison],
    rejected: Sequence[Rejected],
    *,
    splits: Mapping[str, int],
    guidelines: Mapping[str, str],
    projects: Mapping[str, str],
    sources: Mapping[str, str],
    aside: Sequence[SetAside] = (),
) -> Card:
    """The card of `rows`, including ties. `sources` maps input files to their digests."""
    decided = [row for row in rows if row.strength]
    agreed = agreement(rows)
    seen = {(row.prompt.id, side.id) for row in rows for side in (row.chosen, row.rejected)}
    return Card(
        name=name,
        comparisons=len(decided),
        ties=len(rows) - len(decided),
        prompts=len({row.prompt.id for row in rows}),
        responses=len(seen),
        annotations=len({row.annotation_id for row in rows} - {""}),
        annotators=dict(sorted(Counter(row.annotator_id for row in rows if row.annotator_id).items())),
        strengths={STRENGTHS[s]: n for s, n in sorted(Counter(row.strength for row in rows).items())},
        splits=dict(splits),
        agreement=agreed.overall,
        alpha=agreed.alpha,
        lengths=_lengths(decided),
        first_chosen=proportion([row.chosen_first for row in decided if row.chosen_first is not None]),
        guidelines=dict(guidelines),
        projects=dict(projects),
        sources=dict(sources),
        quarantined=dict(Counter(row.reason for row in rejected).most_common()),
        set_aside=dict(Counter(reason for row in aside for reason in row.reasons).most_common()),
    )


def proportion(outcomes: Sequence[bool]) -> Rate:
    """The share of True with Wilson's interval (Wilson 1927)."""
    if not outcomes:
        return Rate(count=0)
    test = binomtest(sum(outcomes), len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(count=len(outcomes), share=sum(outcomes) / len(outcomes), low=float(test.low), high=float(test.high))


def _lengths(decided: Sequence[Comparison]) -> Lengths | None:
    if not decided:
        return None
    chosen, rejected = (np.array([len(getattr(row, side).text) for row in decided]) for side in ("chosen", "rejected"))
    return Lengths(
        chosen_mean=float(chosen.mean()),
        chosen_median=float(np.median(chosen)),
        rejected_mean=float(rejected.mean()),
        rejected_median=float(np.median(rejected)),
        longer_chosen=proportion([bool(c > r) for c, r in zip(chosen, rejected, strict=True) if c != r]),
    )


def as_markdown(card: Card) -> str:
    """The card as Markdown."""
    lines = [f"# Comparisons {card.name}", "", *_table(("", "count"), _counts(card)), ""]
    lines += ["## Agreement and balance", "", *_table(("", "share", "95 %", "of"), _rates(card)), ""]
    if card.lengths:
        characters = card.lengths
        lengths = (
            ("chosen", f"{characters.chosen_mean:.0f}", f"{characters.chosen_median:.0f}"),
            ("rejected", f"{characters.rejected_mean:.0f}", f"{characters.rejected_median:.0f}"),
        )
        lines += ["## Length in characters", "", *_table(("", "mean", "median"), lengths), ""]
    for title, head, values in (
        ("Strength", "judgement", card.strengths),
        ("Splits (by prompt)", "part", card.splits),
        ("Annotators", "annotator", card.annotators),
        ("Screens and guidelines", "kind", card.guidelines),
        ("Projects", "kind", card.projects),
        ("Sources", "file", card.sources),
        ("Quarantined rows, by reason", "reason", card.quarantined),
        ("Comparisons excluded by screening or adjudication, by reason", "reason", card.set_aside),
    ):
        if values:
            heading = {"Screens and guidelines": "version", "Projects": "address", "Sources": "SHA-256"}
            rows = [(name, str(value)) for name, value in values.items()]
            lines += [f"## {title}", "", *_table((head, heading.get(title, "count")), rows), ""]
    return "\n".join(lines)


def _counts(card: Card) -> list[tuple[str, str]]:
    return [
        ("comparisons with a winner", str(card.comparisons)),
        ("ties (not counted above)", str(card.ties)),
        ("prompts", str(card.prompts)),
        ("responses", str(card.responses)),
        ("annotations", str(card.annotations)),
        ("annotators", str(len(card.annotators)) if card.annotators else "unknown"),
    ]


def _rates(card: Card) -> list[tuple[str, ...]]:
    rows = [
        ("two annotators name the same winner", card.agreement),
        ("first response shown is chosen", card.first_chosen),
    ]
    rows += [("longer response is chosen", card.lengths.longer_chosen)] if card.lengths else []
    shares = [(name, *_rate(rate)) for name, rate in rows]
    alpha = "not measured" if card.alpha is None else f"{card.alpha:.3f}"
    return [*shares, ("Krippendorff's alpha (nominal)", alpha, "", "")]


def _rate(rate: Rate) -> tuple[str, str, str]:
    if rate.share is None:
        return "not measured", "", "0"
    return f"{rate.share:.3f}", f"{rate.low:.3f} to {rate.high:.3f}", str(rate.count)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table in which cell contents stay text: no new cells, HTML, links or images."""
    cells = [[_plain(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (list(head), ["---"] * len(head), *cells)]


def _plain(cell: str) -> str:
    shown = " ".join(cell.split()).replace("&", "&amp;").replace("|", "\\|")
    for mark in "<>[]`":
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return shown
