"""Reliability of each annotator, estimated from the comparisons alone: Crowd-BT.

Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise ranking aggregation in a crowdsourced setting", section 3:

    P(k says i beats j) = η_k σ(s_i − s_j) + (1 − η_k) σ(s_j − s_i)

Responses have latent scores s, as in a reward model; annotator k follows the scores with probability η_k and reverses
them otherwise: η = 1 errs only between responses of similar score, η = 1/2 is uninformative, η < 1/2 is reversed.

Most responses have only two or three judgements, and scores fitted to them overfit the errors: everyone looks reliable.
So the difference Δ of each pair is integrated out, Δ ~ N(0, τ²), and only η and τ are fitted, as the posterior mode of
the product over pairs (a composite likelihood, Lindsay 1988: consistent although the pairs of a prompt are dependent).

All comparisons are used, including those held out later to test a reward model: the labels of held-out prompts and
annotators inform the reliability of the others. Reward-model scores are never used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from alignment.records import Comparison
from labeling.quality.agreement import votes

NODES = 31  # of the Gauss-Hermite quadrature over Δ
PRIOR = (4.0, 2.0)  # Beta: an annotator with little data is assumed to be slightly better than chance
SPREAD = (np.log(2.0), 1.0)  # prior mean and standard deviation of log τ
START = 1.5  # initial log-odds of η: above 1/2, since reversing all η is an equivalent optimum
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """Votes grouped by pair: annotator and side (±1), both of shape (n,), and the start index of each pair.

    Pairs with identical votes of the same annotators are stored once, with their count in `times`: a few hundred
    instead of ten thousand. Since Δ and −Δ are equally likely, votes on a pair and on the swapped pair are identical.
    """

    annotators: tuple[str, ...]
    who: Indices
    side: Floats
    begins: Indices
    times: Floats

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> "Choices":
        """From comparisons with a winner."""
        times = Counter(_upright(sorted(pair.items())) for pair in votes(comparisons).values())
        patterns = list(times)
        names = sorted({name for pair in patterns for name, _ in pair})
        number = {name: index for index, name in enumerate(names)}
        sizes = np.array([len(pair) for pair in patterns], dtype=np.int64)
        return cls(
            tuple(names),
            np.array([number[name] for pair in patterns for name, _ in pair], dtype=np.int64),
            np.array([side for pair in patterns for _, side in pair], dtype=float),
            np.cumsum(sizes) - sizes,
            np.array(list(times.values()), dtype=float),
        )


def _upright(pair: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """The votes of a pair, swapped if necessary so that the first annotator prefers the first response."""
    return tuple((name, side * pair[0][1]) for name, side in pair)


def minus_log_posterior(parameters: Floats, choices: Choices) -> tuple[float, Floats]:
    """−log p(choices | η, τ) − log p(η) − log p(τ) up to a constant, and its gradient.

    log p = Σ_pairs log ∫ N(Δ; 0, τ²) Π_k [η_k σ(y_k Δ) + (1 − η_k) σ(−y_k Δ)] dΔ, where y_k = ±1 is k's vote on the
    pair. `parameters` are the log-odds of each η, and log τ last.
    """
    odds, log_tau = parameters[:-1], parameters[-1]
    nodes, masses = np.polynomial.hermite_e.hermegauss(NODES)
    difference = np.exp(log_tau) * nodes
    every_eta = expit(odds)
    eta = every_eta[choices.who][:, None]
    right = expit(choices.side[:, None] * difference)
    chance = eta * right + (1 - eta) * (1 - right)
    joint = np.add.reduceat(np.log(chance), choices.begins) + np.log(masses / masses.sum())
    by_pair = logsumexp(joint, axis=1)
    posterior = np.exp(joint - by_pair[:, None])
    sizes = np.diff(np.append(choices.begins, len(choices.who)))
    share = np.repeat(posterior * choices.times[:, None], sizes, axis=0) / chance
    by_odds = (share * (2 * right - 1)).sum(1) * (eta * (1 - eta))[:, 0]
    by_tau = (share * (2 * eta - 1) * choices.side[:, None] * right * (1 - right) * difference).sum()
    a, b = PRIOR
    mean, deviation = SPREAD
    prior = ((a - 1) * np.log(every_eta) + (b - 1) * np.log1p(-every_eta)).sum()
    prior -= (log_tau - mean) ** 2 / (2 * deviation**2)
    gradient = np.append(
        np.bincount(choices.who, by_odds, len(odds)) + (a - 1) * (1 - every_eta) - (b - 1) * every_eta,
        by_tau - (log_tau - mean) / deviation**2,
    )
    return -float(by_pair @ choices.times + prior), -gradient


def reliabilities(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """η by annotator. Only comparisons with a winner count; rows without an annotator count as one person."""
    rows = [row for row in comparisons if row.strength]
    if not rows:
        return {}
    choices = Choices.of(rows)
    start = np.append(np.full(len(choices.annotators), START), SPREAD[0])
    fit = minimize(minus_log_posterior, start, args=(choices,), jac=True, method="L-BFGS-B")
    return dict(zip(choices.annotators, expit(fit.x[:-1]).tolist(), strict=True))


def weights(comparisons: Sequence[Comparison], eta: Mapping[str, float]) -> dict[str, float]:
    """The weight of a comparison, by annotator: max(0, 2η − 1), scaled so that the mean weight of comparisons is 1.

    2η − 1 is the attenuation of a true preference in the annotator's votes: E[vote] = (2η − 1) E[true] for a
    preference of ±1 that is reversed with probability 1 − η.
    """
    raw = {annotator: max(0.0, 2 * value - 1) for annotator, value in eta.items()}
    unscaled = [raw[row.annotator_id] for row in comparisons if row.strength]
    mean = sum(unscaled) / len(unscaled) if unscaled else 0.0
    return {annotator: value / mean if mean else 1.0 for annotator, value in raw.items()}
