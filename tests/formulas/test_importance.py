"""Truncated importance weights, and how far the sampler is from the learner."""

import math
from types import ModuleType

import pytest
import torch

from alignment.ppo import importance

F64 = torch.float64


def check_by_hand(m: ModuleType) -> None:
    """π/μ of ½, 1, 1.9 and 3, truncated at 2."""
    sampler = torch.full((4,), -3.0, dtype=F64)
    learner = sampler + torch.tensor([0.5, 1.0, 1.9, 3.0], dtype=F64).log()
    assert m.truncated_weights(learner, sampler, 2.0).tolist() == pytest.approx([0.5, 1.0, 1.9, 2.0], abs=1e-12)


def check_expectation(m: ModuleType) -> None:
    """Σ μ w f = Σ π f where nothing is truncated; where something is, only its part is missing."""
    learner, sampler = torch.randn(2, 6, dtype=F64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    f = torch.arange(6, dtype=F64)
    weights = m.truncated_weights(learner, sampler, 1e9)
    assert float((sampler.exp() * weights * f).sum()) == pytest.approx(float((learner.exp() * f).sum()), abs=1e-12)
    truncated = m.truncated_weights(learner, sampler, 1.0)
    least = torch.minimum(learner.exp(), sampler.exp())
    assert float((sampler.exp() * truncated * f).sum()) == pytest.approx(float((least * f).sum()), abs=1e-12)


def check_mismatch(m: ModuleType) -> None:
    """Three tokens with π/μ of 3, ½ and 1, and padding that must not count."""
    ratio = torch.tensor([[3.0, 0.5, 1.0, 1e6]], dtype=F64)
    sampler = torch.tensor([[-1.0, -2.0, -3.0, -9.0]], dtype=F64)
    found = m.mismatch(sampler + ratio.log(), sampler, torch.tensor([[True, True, True, False]]), 2.0)
    assert found["sampler_kl"] == pytest.approx((2 - math.log(3) - 0.5 + math.log(2)) / 3, abs=1e-12)
    assert found["sampler_ratio"] == pytest.approx(1.5, abs=1e-12)
    assert found["sampler_ratio_largest"] == pytest.approx(3, abs=1e-12)
    assert found["truncated_share"] == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("check", [check_by_hand, check_expectation, check_mismatch])
def test_importance(check) -> None:
    check(importance)
