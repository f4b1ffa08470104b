"""Snapshot selection: the earliest that is not significantly worse than the best, by paired differences."""

import math
from types import ModuleType

import pytest
import torch

from tests.formulas.models import module

SELECTION = module("methods.selection")


def check_by_hand(m: ModuleType) -> None:
    """Means 0, 1.5, 2, 1.75. Step 8 lacks (1, 1, −1, 1), 0.5 ± √(3/4)/2 = 0.433: told apart from the best, step 16."""
    rewards = torch.tensor([[0.0, 0, 0, 0], [1, 1, 3, 1], [2, 2, 2, 2], [1, 2, 2, 2]])
    chosen = m.earliest_as_good([0, 8, 16, 24], rewards)
    assert chosen.step == 16
    assert chosen.means == {0: 0, 8: 1.5, 16: 2, 24: 1.75}
    assert list(chosen.errors.values()) == pytest.approx([0, math.sqrt(0.75) / 2, 0, math.sqrt(3 / 16) / 2])


def check_within_the_error(m: ModuleType) -> None:
    """Step 8 lacks (2, −1, 2, −1) of the best: 0.5 ± 0.75, which is nothing; step 0 lacks 3 everywhere."""
    rewards = torch.tensor([[-1.0, -1, -1, -1], [0, 3, 0, 3], [2, 2, 2, 2]])
    assert m.earliest_as_good([0, 8, 16], rewards).step == 8


def check_what_never_got_better(m: ModuleType) -> None:
    """Where the reference is the best, it stays."""
    assert m.earliest_as_good([0, 8], torch.tensor([[1.0, 2.0], [0.0, 1.0]])).step == 0
    assert m.earliest_as_good([0, 8], torch.tensor([[1.0, 2.0], [1.0, 2.0]])).step == 0


def test_by_hand() -> None:
    check_by_hand(SELECTION)


def test_what_lies_within_the_error_is_as_good() -> None:
    check_within_the_error(SELECTION)


def test_what_never_got_better_stays() -> None:
    check_what_never_got_better(SELECTION)
