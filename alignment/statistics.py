"""Small statistics that reports rest on: intervals, calibration, correlation, and a baseline for the reward model."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.records import Comparison

Z95 = 1.959963984540054


def wilson_interval(successes: float, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, eq. 4): (0, 1) without trials.

    centre = (p + z²/2n) / (1 + z²/n), half-width = z/(1 + z²/n) · √(p(1−p)/n + z²/4n²)
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    denominator = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(margins: Tensor, bins: int = 10) -> float:
    """ECE of P(chosen wins) = σ(margin), folded to confidence in [0.5, 1] (Guo 2017, eq. 3).

    Each pair counts once, from the side that the model favours: confidence σ(|margin|), right when margin > 0.
    """
    confidence, correct = torch.sigmoid(margins.abs()), (margins > 0).float()
    edges = bin_index(confidence, bins)
    total = 0.0
    for number in range(bins):
        inside = edges == number
        if inside.any():
            gap = (confidence[inside].mean() - correct[inside].mean()).abs()
            total += float(gap) * float(inside.float().mean())
    return total


def bin_index(confidence: Tensor, bins: int) -> Tensor:
    """The bin of each confidence among `bins` equal ones over [0.5, 1]."""
    return ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either side does not vary."""
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else 0.0


def bag_of_words_accuracy(train: Sequence[Comparison], test: Sequence[Comparison]) -> float:
    """Test accuracy of logistic regression on word counts of chosen minus rejected: what needs no language model."""
    import numpy
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(min_df=2)
    words.fit(text for row in train for text in (row.chosen.text, row.rejected.text))

    def difference(rows: Sequence[Comparison]) -> "numpy.typing.NDArray[numpy.float64]":
        sides = [words.transform([getattr(row, side).text for row in rows]) for side in ("chosen", "rejected")]
        return (sides[0] - sides[1]).toarray().astype(float)  # type: ignore[no-any-return]

    features = difference(train)
    labels = numpy.repeat([1, 0], len(train))
    model = LogisticRegression(C=0.1, max_iter=300, fit_intercept=False).fit(
        numpy.vstack([features, -features]), labels
    )
    return float((model.decision_function(difference(test)) > 0).mean())
