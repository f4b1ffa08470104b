"""How far each annotator can be relied on, from the comparisons alone: Crowd-BT.

Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise ranking aggregation in a crowdsourced setting", section 3:

    P(k says i beats j) = η_k σ(s_i − s_j) + (1 − η_k) σ(s_j − s_i)

Responses have scores s, as in a reward model, and annotator k says what the scores say with probability η_k, else the
opposite: 1 is a judge who errs only where responses are near, 1/2 says nothing, less than 1/2 has it upside down. The
scores and the η are those of the highest posterior under s ~ N(0, v) and η ~ Beta(a, b); without the priors, scores of
responses that were judged once or twice, and always the same way, would have no bound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from alignment.records import Comparison

SCORE_VARIANCE = 4.0
PRIOR = (4.0, 2.0)  # Beta: an annotator of whom little is known counts as a little better than half right
START = 1.5  # log-odds of η: on the right side of 1/2, where scores and η could both be turned round
Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """Comparisons as indices, all of shape (n,): who said it, and the responses that won and lost."""

    annotators: tuple[str, ...]
    who: Places
    won: Places
    lost: Places
    responses: int

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> "Choices":
        """From comparisons with a winner; a response is one of its prompt's."""
        names = sorted({row.annotator_id for row in comparisons})
        who = {name: number for number, name in enumerate(names)}
        sides = [(row.prompt.id, side.id) for row in comparisons for side in (row.chosen, row.rejected)]
        place = {side: number for number, side in enumerate(dict.fromkeys(sides))}
        index = np.array([place[side] for side in sides], dtype=np.int64).reshape(-1, 2)
        told = np.array([who[row.annotator_id] for row in comparisons], dtype=np.int64)
        return cls(tuple(names), told, index[:, 0], index[:, 1], len(place))


def minus_log_posterior(parameters: Floats, choices: Choices) -> tuple[float, Floats]:
    """−log p(choices | s, η) − log p(s) − log p(η) up to a constant, and its gradient.

    `parameters` are the scores and then the log-odds of η: with Δ = s_won − s_lost and p = η σ(Δ) + (1 − η) σ(−Δ),
    ∂ log p/∂Δ = (2η − 1) σ(Δ) σ(−Δ) / p and ∂ log p/∂ logit η = (σ(Δ) − σ(−Δ)) η (1 − η) / p.
    """
    scores, odds = parameters[: choices.responses], parameters[choices.responses :]
    all_eta = expit(odds)
    eta, right = all_eta[choices.who], expit(scores[choices.won] - scores[choices.lost])
    chance = eta * right + (1 - eta) * (1 - right)
    a, b = PRIOR
    prior = -(scores**2).sum() / (2 * SCORE_VARIANCE) + (
        (a - 1) * np.log(all_eta) + (b - 1) * np.log1p(-all_eta)
    ).sum()
    by_difference = (2 * eta - 1) * right * (1 - right) / chance
    gradient = np.zeros_like(parameters)
    np.add.at(gradient, choices.won, by_difference)
    np.add.at(gradient, choices.lost, -by_difference)
    np.add.at(gradient, choices.responses + choices.who, (2 * right - 1) * eta * (1 - eta) / chance)
    gradient[: choices.responses] -= scores / SCORE_VARIANCE
    gradient[choices.responses :] += (a - 1) * (1 - all_eta) - (b - 1) * all_eta
    return -float(np.log(chance).sum() + prior), -gradient


def reliabilities(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """η of each annotator. Comparisons need a winner; rows without an annotator count as one person."""
    rows = [row for row in comparisons if row.strength]
    if not rows:
        return {}
    choices = Choices.of(rows)
    start = np.concatenate([np.zeros(choices.responses), np.full(len(choices.annotators), START)])
    found = minimize(minus_log_posterior, start, args=(choices,), jac=True, method="L-BFGS-B",
                     options={"maxiter": 1000, "maxfun": 2000})  # fmt: skip
    return dict(zip(choices.annotators, expit(found.x[choices.responses :]).tolist(), strict=True))


def weights(comparisons: Sequence[Comparison], eta: Mapping[str, float]) -> dict[str, float]:
    """What a comparison of each annotator counts: max(0, 2η − 1), scaled so that comparisons weigh 1 on average.

    2η − 1 is how much of a true preference is left in what the annotator says: E[said] = (2η − 1) E[true] for a
    preference of ±1 that is turned round with probability 1 − η.
    """
    raw = {annotator: max(0.0, 2 * value - 1) for annotator, value in eta.items()}
    given = [raw[row.annotator_id] for row in comparisons if row.strength]
    mean = sum(given) / len(given) if given else 0.0
    return {annotator: value / mean if mean else 1.0 for annotator, value in raw.items()}
