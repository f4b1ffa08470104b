"""Aggregation of ensemble scores, by hand."""

from types import ModuleType

import pytest
import torch

from tests.formulas.models import module

SCORES = torch.tensor([[1.0, -2.0, 4.0], [3.0, 0.0, 4.0], [5.0, 2.0, 4.0]], dtype=torch.float64)  # 3 members, 3 answers
ENSEMBLE = module("models.ensembles")


def check_by_hand(m: ModuleType) -> None:
    """Means 3, 0, 4; lowest 1, −2, 4; variances 8/3, 8/3, 0."""
    assert m.combined(SCORES, "mean", 0.5).tolist() == pytest.approx([3, 0, 4])
    assert m.combined(SCORES, "worst", 0.5).tolist() == [1, -2, 4]
    assert m.combined(SCORES, "uncertainty", 0.5).tolist() == pytest.approx([3 - 4 / 3, -4 / 3, 4])
    assert m.spread(SCORES).tolist() == pytest.approx([(8 / 3) ** 0.5, (8 / 3) ** 0.5, 0])


def check_one_member(m: ModuleType) -> None:
    one = SCORES[:1]
    assert all(m.combined(one, how, 2.0).tolist() == one[0].tolist() for how in ("mean", "worst", "uncertainty"))
    assert m.spread(one).tolist() == [0, 0, 0]


def test_the_three_ways_by_hand() -> None:
    check_by_hand(ENSEMBLE)


def test_one_member_is_itself() -> None:
    check_one_member(ENSEMBLE)
