"""Inter-annotator agreement on pairs of responses.

Two measures: the share of double judgements that name the same winner (InstructGPT reports 72.6 % for its labelers),
and Krippendorff's alpha (nominal, ties are a value), which is 0 at chance and 1 at full agreement. Both have a
bootstrap interval over prompts, since the pairs of one ranking are not independent.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from alignment.criteria import CRITERION_NAMES
from alignment.records import Comparison
from labeling.quality.results import Agreement, Rate

BOOTSTRAP_DRAWS = 1000
CONFIDENCE = 0.95
VALUES = (-1, 0, 1)
Votes = dict[tuple[str, str, str], dict[str, int]]
Matrix = NDArray[np.float64]


def votes(comparisons: Iterable[Comparison], criterion: str | None = None) -> Votes:
    """Each annotator's vote on each pair of responses: 1 for the first (by id), -1 for the second, 0 for a tie."""
    pair_votes: Votes = defaultdict(dict)
    for row in comparisons:
        if criterion is not None and criterion not in row.criteria:
            continue
        better = int(np.sign(row.strength if criterion is None else row.criteria[criterion]))
        first, second = sorted((row.chosen.id, row.rejected.id))
        pair_votes[row.prompt.id, first, second][row.annotator_id] = better if first == row.chosen.id else -better
    return dict(pair_votes)


def double_judgements(pair_votes: Votes) -> list[tuple[str, str, str, bool]]:
    """(prompt, annotator, annotator, same winner?) for every two annotators who named a winner of the same pair."""
    return [
        (prompt, first, second, values[first] == values[second])
        for (prompt, _, _), values in pair_votes.items()
        for first, second in combinations(sorted(values), 2)
        if values[first] and values[second]
    ]


def rate(doubles: Sequence[tuple[str, str, str, bool]]) -> Rate:
    """The share of agreement, with a bootstrap interval over prompts."""
    if not doubles:
        return Rate(count=0)
    prompts = sorted({prompt for prompt, *_ in doubles})
    index = {prompt: i for i, prompt in enumerate(prompts)}
    same, total = np.zeros(len(prompts)), np.zeros(len(prompts))
    for prompt, _, _, same_winner in doubles:
        total[index[prompt]] += 1
        same[index[prompt]] += same_winner
    samples = np.random.default_rng(0).integers(len(prompts), size=(BOOTSTRAP_DRAWS, len(prompts)))
    low, high = _interval(same[samples].sum(1) / total[samples].sum(1))
    return Rate(count=len(doubles), share=float(same.sum() / total.sum()), low=low, high=high)


def _interval(values: Matrix) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def coincidences(pair_votes: Votes) -> Matrix:
    """The coincidence matrix of each prompt, in the order of prompt ids. Shape: (prompts, values, values).

    o_ck = Σ_u n_uc (n_uk − [c = k]) / (m_u − 1) over the prompt's units u with m_u ≥ 2 values, n_uc of which are c
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", step 2 of C).
    """
    index = {prompt: number for number, prompt in enumerate(sorted({prompt for prompt, *_ in pair_votes}))}
    matrices = np.zeros((len(index), len(VALUES), len(VALUES)))
    units = [(index[prompt], list(values.values())) for (prompt, *_), values in pair_votes.items() if len(values) > 1]
    if units:
        counts = np.array([[values.count(value) for value in VALUES] for _, values in units], dtype=float)
        both = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(VALUES))
        np.add.at(matrices, [prompt for prompt, _ in units], both / (counts.sum(1) - 1)[:, None, None])
    return matrices


def alpha_of(matrices: Matrix) -> Matrix:
    """Krippendorff's alpha of coincidence matrices, NaN where fewer than two values are used.

    α = 1 − (n − 1) Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k for nominal data (Krippendorff 2011, step 4 of C).
    Shapes: (…, values, values) → (…).
    """
    marginals = matrices.sum(-1)
    n = marginals.sum(-1)
    observed = n - np.trace(matrices, axis1=-2, axis2=-1)
    expected = n**2 - (marginals**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (n - 1) * observed / expected, np.nan))


def alpha(pair_votes: Votes) -> float | None:
    """Krippendorff's alpha for nominal data; None when no pair has two judgements, or only one value is used."""
    return _number(alpha_of(coincidences(pair_votes).sum(0)))


def _number(value: Matrix) -> float | None:
    return None if np.isnan(value) else float(value)


def alphas_of_two(pair_votes: Votes) -> dict[str, float | None]:
    """Alpha of every two annotators ("3 and 7"), from the contingency table of their votes.

    A unit with the two values c and k adds one to o_ck and one to o_kc: the table and its transpose.
    """
    tables: dict[str, Matrix] = defaultdict(lambda: np.zeros((len(VALUES), len(VALUES))))
    for values in pair_votes.values():
        for first, second in combinations(sorted(values), 2):
            tables[f"{first} and {second}"][values[first] + 1, values[second] + 1] += 1
    return {pair: _number(alpha_of(table + table.T)) for pair, table in sorted(tables.items())}


def alpha_interval(pair_votes: Votes) -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of alpha over prompts; (None, None) where alpha is undefined."""
    matrices = coincidences(pair_votes)
    if np.isnan(alpha_of(matrices.sum(0))):
        return None, None
    count = len(matrices)
    samples = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_DRAWS)
    values = alpha_of(np.einsum("dp,pij->dij", samples.astype(float), matrices))
    return _interval(values[~np.isnan(values)])


def agreement(comparisons: Sequence[Comparison]) -> Agreement:
    """All agreement figures of comparisons. Pass ties too: they count in alpha."""
    overall = votes(comparisons)
    rated = dict.fromkeys((*CRITERION_NAMES, *(name for row in comparisons for name in row.criteria)))
    by_criterion = {name: votes(comparisons, name) for name in rated}
    doubles = double_judgements(overall)
    pairs: dict[str, list[tuple[str, str, str, bool]]] = defaultdict(list)
    for double in doubles:
        pairs[f"{double[1]} and {double[2]}"].append(double)
    low, high = alpha_interval(overall)
    return Agreement(
        overall=rate(doubles),
        alpha=alpha(overall),
        alpha_low=low,
        alpha_high=high,
        criteria={name: rate(double_judgements(pair_votes)) for name, pair_votes in by_criterion.items()},
        criteria_alpha={name: alpha(pair_votes) for name, pair_votes in by_criterion.items()},
        annotators={name: rate(of_pair) for name, of_pair in sorted(pairs.items())},
        annotators_alpha=alphas_of_two(overall),
    )
