"""Fitting the noise temperature of simulated annotators to a target agreement.

An annotator of noisiness s prefers the first of two responses with probability p = sigmoid((u_1 - u_2) / (s T)), where
u are the annotator's utilities and T is the temperature of the whole crew (`labeling.simulation.crew`). Agreement falls
as T grows, so T is found by bisection.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from labeling.simulation.crew import Annotator

Floats = npt.NDArray[np.float64]
TEMPERATURES = (0.005, 5.0)
BISECTIONS = 40


def fitting_temperature(crew: Sequence[Annotator], scored: Sequence[Sequence[Sequence[float]]], target: float) -> float:
    """The temperature at which the crew's agreement is `target`, by bisection; clipped to `TEMPERATURES`."""
    differences = _differences(crew, scored)
    low, high = (math.log(value) for value in TEMPERATURES)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _agreement(differences, math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _differences(crew: Sequence[Annotator], scored: Sequence[Sequence[Sequence[float]]]) -> Floats:
    """Utility differences of each pair divided by the annotator's noisiness. Shape: (pairs, crew)."""
    noisiness = np.array([annotator.noisiness for annotator in crew])
    tables = [np.array(by_annotator) for by_annotator in scored]
    pairs = [table[:, i] - table[:, j] for table in tables for i, j in combinations(range(table.shape[1]), 2)]
    differences: Floats = np.array(pairs).reshape(-1, len(crew)) / noisiness
    return differences


def _agreement(differences: Floats, temperature: float) -> float:
    """The mean over pairs of the probability that two of the n annotators agree.

    With p_k the probability that annotator k prefers the first response, it is
    1 - 2 mean(p) + 2 (sum(p)^2 - sum(p^2)) / (n (n-1)).
    """
    if not len(differences):
        return 1.0
    chances = 0.5 * (1 + np.tanh(differences / (2 * temperature)))
    total, squares, n = chances.sum(axis=1), (chances**2).sum(axis=1), chances.shape[1]
    return float(np.mean(1 - 2 * total / n + 2 * (total**2 - squares) / (n * (n - 1))))
