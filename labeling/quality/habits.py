"""Habits measured on one annotator's judgements: side preference, untouched orders, contradictions, haste.

Responses are shown in a random order, so an attentive annotator has no position bias: the null hypothesis of the
tests.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import erfc, factorial, sqrt
from statistics import median

import numpy as np
from scipy import stats

from labeling.judgements.comparisons import rated_criteria
from labeling.judgements.judgement import Judgement, PairwiseJudgement, RankingJudgement
from labeling.quality.agreement import Votes
from labeling.tasks.tasks import Task

FITTED = 400  # sample size of the Theil-Sen fit, whose cost is quadratic
HASTY = 0.25
Tested = tuple[float | None, float | None]


def rankings(judgements: Iterable[Judgement]) -> list[RankingJudgement]:
    """The ranking judgements with an order."""
    return [j for j in judgements if isinstance(j, RankingJudgement) and j.ranking]


def decided(judgements: Iterable[Judgement]) -> list[PairwiseJudgement]:
    """The pairwise judgements with a winner."""
    return [j for j in judgements if isinstance(j, PairwiseJudgement) and j.preference]


def left_share(judgements: Iterable[Judgement]) -> Tested:
    """The share of pairs that the left response won, and the p-value of the two-sided binomial test against 1/2."""
    left = [judgement.preference > 0 for judgement in decided(judgements)]
    if not left:
        return None, None
    return sum(left) / len(left), float(stats.binomtest(sum(left), len(left), 0.5).pvalue)


def position_correlation(judgements: Iterable[Judgement], tasks: Mapping[str, Task]) -> Tested:
    """Mean Kendall's tau between the ranking and the order shown, and its two-sided p-value.

    Under the null hypothesis tau of K items has mean 0 and variance 2(2K+5) / 9K(K−1) (Kendall 1938); the sum over
    rankings is approximated as normal. A tied pair counts 0, which reduces the variance: the p-value is conservative.
    """
    taus, variance = [], 0.0
    for judgement in rankings(judgements):
        shown = tasks[judgement.task_uid].shown
        rank = judgement.ranks
        pairs = list(combinations(shown, 2))
        taus.append(sum((rank[a] < rank[b]) - (rank[a] > rank[b]) for a, b in pairs) / len(pairs))
        variance += 2 * (2 * len(shown) + 5) / (9 * len(shown) * (len(shown) - 1))
    if not taus:
        return None, None
    return sum(taus) / len(taus), erfc(abs(sum(taus)) / sqrt(variance) / sqrt(2))


def untouched(judgements: Iterable[Judgement], tasks: Mapping[str, Task]) -> Tested:
    """The share of rankings left in the order shown, and the binomial p-value for at least as many with chance 1/K!.

    For rankings of different lengths the mean chance is used. A ranking with a marked tie counts as changed.
    """
    orders = rankings(judgements)
    if not orders:
        return None, None
    left = sum(j.ranking == tasks[j.task_uid].shown and not j.ties for j in orders)
    chance = sum(1 / factorial(len(j.ranking)) for j in orders) / len(orders)
    return left / len(orders), float(stats.binomtest(left, len(orders), chance, alternative="greater").pvalue)


def contradictions(judgements: Iterable[Judgement]) -> tuple[float | None, int]:
    """(Share of pairwise judgements that prefer the side with fewer stars in total, number with unequal totals)."""
    contradictory = []
    for judgement in decided(judgements):
        rated = judgement.ratings
        stars = sum(rated[f"a_{name}"] - rated[f"b_{name}"] for name in rated_criteria(judgement))
        if stars:
            contradictory.append((stars > 0) != (judgement.preference > 0))
    return (sum(contradictory) / len(contradictory) if contradictory else None), len(contradictory)


def intransitive(pair_votes: Votes, annotator: str) -> tuple[float | None, int]:
    """(Share of cyclic triples, number of triples) among those whose three pairs the annotator decided.

    A single ranking has no cycles; several judgements of the same responses may.
    """
    beats: dict[str, dict[frozenset[str], str]] = defaultdict(dict)
    for (prompt, first, second), values in pair_votes.items():
        if values.get(annotator):
            beats[prompt][frozenset((first, second))] = first if values[annotator] > 0 else second
    cycles = triples = 0
    for winners in beats.values():
        for triple in combinations(sorted(set().union(*winners)), 3):
            triple_winners = [winners.get(frozenset(pair)) for pair in combinations(triple, 2)]
            if None not in triple_winners:
                triples += 1
                cycles += len(set(triple_winners)) == 3
    return (cycles / triples if triples else None), triples


def words(task: Task) -> int:
    """The number of words in a task."""
    return sum(len(text.split()) for text in (task.prompt.text, *(r.text for r in task.responses.values())))


def hasty(judgements: Sequence[Judgement], tasks: Mapping[str, Task]) -> dict[str, bool]:
    """For each timed annotation id, whether it took less than a quarter of the usual time for its number of words.

    The usual time is a robust linear fit over words (Theil 1950, Sen 1968: the median of slopes, which tolerates over a
    quarter of outliers), for each kind of task; kinds with fewer than ten judgements are left out.
    """
    by_kind: dict[str, list[tuple[int, float, str]]] = defaultdict(list)
    for judgement in judgements:
        if judgement.lead_time > 0:
            task = tasks[judgement.task_uid]
            by_kind[task.kind].append((words(task), judgement.lead_time, judgement.annotation_id))
    too_fast: dict[str, bool] = {}
    for timed in by_kind.values():
        if len(timed) < 10:
            continue
        sample = timed[:: -(-len(timed) // FITTED)]
        read, seconds = (np.array([row[i] for row in sample], dtype=float) for i in (0, 1))
        with np.errstate(invalid="ignore"):  # in the slope's interval, where most texts are of one length
            slope = max(0.0, float(stats.theilslopes(seconds, read).slope)) if np.ptp(read) else 0.0
        start = median((seconds - slope * read).tolist())
        least = float(np.min(seconds))
        too_fast |= {
            identity: duration < HASTY * max(start + slope * count, least) for count, duration, identity in timed
        }
    return too_fast
