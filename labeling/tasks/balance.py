"""Check, before labeling starts, that the order in which responses are shown favours no origin."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from alignment.records import Record
from labeling.tasks.tasks import Task

DRAWS = 499
Numbers = NDArray[np.int64]


class Balance(Record):
    """Positions of responses in tasks of one kind and size.

    `places` counts, for each origin of responses (a policy, or an index among the samples), how often it is shown in
    each position. `p_value` is the probability of at least this much imbalance under random order; None for a single
    origin. `lengths` are mean characters by position. `longer_first` is the share of pairwise tasks that show the
    longer response first.
    """

    tasks: int
    places: dict[str, tuple[int, ...]]
    p_value: float | None
    lengths: tuple[float, ...]
    longer_first: float | None = None


def balance(tasks: Sequence[Task], origins: Mapping[str, str]) -> list[Balance]:
    """The balance of tasks by number of responses, ascending. `origins` are by our response ids."""
    by_size: dict[int, list[Task]] = {}
    for task in tasks:
        by_size.setdefault(len(task.responses), []).append(task)
    return [_balance(by_size[size], size, origins) for size in sorted(by_size) if size]


def _balance(tasks: Sequence[Task], size: int, origins: Mapping[str, str]) -> Balance:
    shown = [[origins.get(response.id, "") for response in task.responses.values()] for task in tasks]
    lengths = np.array([[len(response.text) for response in task.responses.values()] for task in tasks])
    names = sorted({name for row in shown for name in row})
    numbers = np.array([[names.index(name) for name in row] for row in shown])
    longer = [bool(a > b) for a, b in lengths if a != b] if size == 2 else []
    counts = position_counts(numbers, len(names))
    return Balance(
        tasks=len(tasks),
        places={name: tuple(map(int, row)) for name, row in zip(names, counts, strict=True)},
        p_value=order_p_value(numbers),
        lengths=tuple(map(float, lengths.mean(0))),
        longer_first=fmean(longer) if longer else None,
    )


def position_counts(shown: Numbers, origins: int) -> Numbers:
    """How often each origin is shown in each position. Shapes: (tasks, positions) → (origins, positions)."""
    return np.stack([np.bincount(column, minlength=origins) for column in shown.T], axis=1)


def order_p_value(shown: Numbers) -> float | None:
    """The p-value of a permutation test of the positions of origins within tasks; None for a single origin.

    The statistic is Pearson's Σ (O − E)² / E over origins and positions. Each task keeps its responses, so the test is
    valid even if tasks do not have one response of each origin: p = (1 + #{permuted ≥ observed}) / (1 + permutations)
    (Phipson and Smyth 2010, "Permutation P-values should never be zero", section 3). Shape: (tasks, positions), with
    indices of origins.
    """
    origins = int(shown.max()) + 1
    if origins < 2:
        return None
    expected = np.repeat(position_counts(shown, origins).sum(1, keepdims=True) / shown.shape[1], shown.shape[1], axis=1)

    def statistic(numbers: Numbers) -> float:
        return float(((position_counts(numbers, origins) - expected) ** 2 / expected).sum())

    observed, rng = statistic(shown), np.random.default_rng(0)
    permuted = [statistic(rng.permuted(shown, axis=1)) for _ in range(DRAWS)]
    return (1 + sum(value >= observed - 1e-9 for value in permuted)) / (1 + DRAWS)
