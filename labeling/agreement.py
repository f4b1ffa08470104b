"""How far annotators agree about the same pair of responses.

Two measures: the share of double judgements that name the same winner (InstructGPT reports 72.6 % for its labelers),
with a bootstrap interval over prompts, since the pairs of one ranking are not independent; and Krippendorff's alpha
(nominal, ties are a value of their own), which is 0 at chance and 1 at full agreement.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

import krippendorff
import numpy as np
from pydantic import BaseModel, ConfigDict

from alignment.records import CRITERIA, Comparison

BOOTSTRAP_DRAWS = 1000
CONFIDENCE = 0.95
Votes = dict[tuple[str, str, str], dict[str, int]]


class Rate(BaseModel):
    """A share of `count` double judgements with its 95 % interval; None where nothing could be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


class Agreement(BaseModel):
    """Agreement overall, by criterion (of those rated), and between each two annotators ("3 and 7")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: Rate
    alpha: float | None
    criteria: dict[str, Rate]
    criteria_alpha: dict[str, float | None]
    annotators: dict[str, Rate]


def votes(comparisons: Iterable[Comparison], criterion: str | None = None) -> Votes:
    """For each pair of responses what each annotator said: 1 the first (by id) is better, -1 the second, 0 a tie."""
    found: Votes = defaultdict(dict)
    for row in comparisons:
        if criterion is not None and criterion not in row.criteria:
            continue
        better = int(np.sign(row.strength if criterion is None else row.criteria[criterion]))
        first, second = sorted((row.chosen.id, row.rejected.id))
        found[row.prompt.id, first, second][row.annotator_id] = better if first == row.chosen.id else -better
    return dict(found)


def double_judgements(found: Votes) -> list[tuple[str, str, str, bool]]:
    """(prompt, annotator, annotator, same winner?) wherever two annotators named a winner of the same pair."""
    return [
        (prompt, one, other, said[one] == said[other])
        for (prompt, _, _), said in found.items()
        for one, other in combinations(sorted(said), 2)
        if said[one] and said[other]
    ]


def rate(doubles: Sequence[tuple[str, str, str, bool]]) -> Rate:
    """The share of agreement, and an interval from resampling prompts."""
    if not doubles:
        return Rate(count=0)
    prompts = sorted({prompt for prompt, *_ in doubles})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    same, total = np.zeros(len(prompts)), np.zeros(len(prompts))
    for prompt, _, _, agreed in doubles:
        total[place[prompt]] += 1
        same[place[prompt]] += agreed
    drawn = np.random.default_rng(0).integers(len(prompts), size=(BOOTSTRAP_DRAWS, len(prompts)))
    shares = same[drawn].sum(1) / total[drawn].sum(1)
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Rate(count=len(doubles), share=float(same.sum() / total.sum()), low=float(low), high=float(high))


def alpha(found: Votes) -> float | None:
    """Krippendorff's alpha for nominal data; None when no pair has two judgements or all are alike."""
    annotators = sorted({annotator for said in found.values() for annotator in said})
    table = [[said.get(annotator, np.nan) for said in found.values()] for annotator in annotators]
    values = {value for said in found.values() for value in said.values() if len(said) > 1}
    if len(values) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))


def agreement(comparisons: Sequence[Comparison]) -> Agreement:
    """All figures for comparisons (pass the ties too: they count in alpha)."""
    overall = votes(comparisons)
    by_criterion = {name: votes(comparisons, name) for name in CRITERIA}
    doubles = double_judgements(overall)
    pairs: dict[str, list[tuple[str, str, str, bool]]] = defaultdict(list)
    for double in doubles:
        pairs[f"{double[1]} and {double[2]}"].append(double)
    return Agreement(
        overall=rate(doubles),
        alpha=alpha(overall),
        criteria={name: rate(double_judgements(found)) for name, found in by_criterion.items()},
        criteria_alpha={name: alpha(found) for name, found in by_criterion.items()},
        annotators={name: rate(some) for name, some in sorted(pairs.items())},
    )
