"""Selection of prompts for labeling: pure functions that put the most informative prompts first.

A comparison on which all annotators and models agree teaches little. The most informative prompts are those on which
reward models trained on the same data disagree, or that two policies answer differently.
"""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Item = TypeVar("Item")
Name = TypeVar("Name", bound=str)


def preference_variance(scores: Matrix) -> Matrix:
    """How far k reward models disagree about each pair of n responses. Shapes: (k, n) → (n, n).

    V_ij = Var_m σ(r_mi − r_mj), the variance over members of the probability that i is preferred (Christiano et al.
    2017, "Deep Reinforcement Learning from Human Preferences", section 2.2.4). `scores` are Bradley-Terry
    utilities; an offset of a member common to all responses of a prompt cancels.
    """
    margins = scores[:, :, None] - scores[:, None, :]
    return np.asarray((1 / (1 + np.exp(-margins))).var(axis=0))


def disagreement(scores: Matrix) -> float:
    """The mean of V_ij over the pairs i < j: how informative a ranking of all responses is. Shape: (k, n)."""
    upper = np.triu_indices(scores.shape[1], k=1)
    return float(preference_variance(scores)[upper].mean())


def most_disputed_pair(scores: Matrix) -> tuple[int, int]:
    """The pair i < j with the greatest V_ij, the first of several. Shape: (k, n)."""
    variance = np.triu(preference_variance(scores), k=1)
    row, column = np.unravel_index(int(variance.argmax()), variance.shape)
    return int(row), int(column)


def in_random_order(items: Mapping[str, Item], seed: int) -> list[Item]:
    """The items in a random order that depends only on their names and the seed."""
    names = sorted(items)
    random.Random(f"choice:{seed}").shuffle(names)
    return [items[name] for name in names]


def by_worth(items: Mapping[str, Item], worth: Mapping[str, float], seed: int) -> list[Item]:
    """The items by falling worth, those without one last; ties in random order."""
    names = {name: name for name in items}
    return [
        items[name]
        for name in sorted(in_random_order(names, seed), key=lambda name: worth.get(name, -np.inf), reverse=True)
    ]


def affordable(wanted: Mapping[Name, int], costs: Mapping[Name, float], budget: float) -> dict[Name, int]:
    """How many of the requested tasks a budget covers, every kind reduced by the same factor; `costs` are per task.

    f = min(1, budget / Σ n·c); floor(f·n) of each kind, so that the total never exceeds the budget.
    """
    total = sum(count * costs[kind] for kind, count in wanted.items())
    share = min(1.0, budget / total) if total else 1.0
    return {kind: int(share * count + 1e-9) for kind, count in wanted.items()}


def interleaved(lists: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[index] for index in range(longest) for items in lists if index < len(items)]
