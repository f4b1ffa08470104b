"""Statistics for reports: calibration, correlation, and a baseline for the reward model."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from alignment.records import Comparison

STRENGTHS, FOLDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 5


def expected_calibration_error(margins: Tensor, bins: int = 10) -> float:
    """ECE of P(chosen wins) = σ(margin), folded to confidence in [0.5, 1] (Guo 2017, eq. 3).

    Each pair counts once, from the side that the model prefers: confidence σ(|margin|), correct when margin > 0.
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
    """The bin of each confidence among `bins` equal bins over [0.5, 1]."""
    return ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation; 0 if either side is constant."""
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else 0.0


def bag_of_words_accuracy(train: Sequence[Comparison], test: Sequence[Comparison]) -> float:
    """Test accuracy of logistic regression on the words of chosen and rejected: a baseline without a language model.

    Training comparisons count by their weight.
    The regularisation is chosen by cross-validation over training prompts.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(min_df=2, binary=True)
    words.fit(text for row in train for text in (row.chosen.text, row.rejected.text))

    def features(rows: Sequence[Comparison]) -> Any:
        chosen, rejected = ([getattr(row, side).text for row in rows] for side in ("chosen", "rejected"))
        return words.transform(chosen).astype(float) - words.transform(rejected).astype(float)

    train_features, weights = features(train), numpy.array([row.weight for row in train])
    return _linear_accuracy(_best_strength(train_features, weights, train), train_features, weights, features(test))


def _linear_accuracy(strength: float, fit_on: Any, weights: Any, tested: Any) -> float:
    """The accuracy on `tested` of a model without intercept, fitted on rows of chosen minus rejected."""
    from sklearn.linear_model import LogisticRegression

    labels = numpy.arange(fit_on.shape[0]) % 2  # every other pair is swapped: equivalent without an intercept
    turned = fit_on.multiply(2.0 * labels[:, None] - 1).tocsr()
    model = LogisticRegression(C=strength, max_iter=500, fit_intercept=False)
    model.fit(turned, labels, sample_weight=weights)
    return float((model.decision_function(tested) > 0).mean())


def _best_strength(inputs: Any, weights: Any, rows: Sequence[Comparison]) -> float:
    """The regularisation with the best cross-validated accuracy; the middle one with too few prompts."""
    prompts = {prompt: number for number, prompt in enumerate(sorted({row.prompt.id for row in rows}))}
    if len(prompts) < 4 * FOLDS:
        return 0.1
    fold = numpy.array([prompts[row.prompt.id] % FOLDS for row in rows])

    def score(strength: float) -> float:
        return sum(
            _linear_accuracy(strength, inputs[fold != held], weights[fold != held], inputs[fold == held])
            for held in range(FOLDS)
        )

    return max(STRENGTHS, key=score)
