"""The Bradley-Terry loss, and utilities recovered from noisy choices."""

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import torch

from alignment.reward_model import loss as preference

F64 = torch.float64
SCORES = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
PAIRS = torch.tensor([[0, 1], [2, 0], [2, 1]])  # differences 1.5, 1.0, 2.5


def _nll(x: float) -> float:
    return math.log(1 + math.exp(-x))


def check_by_hand(m: ModuleType) -> None:
    found = m.bradley_terry_loss(SCORES, PAIRS).item()
    assert found == pytest.approx((_nll(1.5) + _nll(1.0) + _nll(2.5)) / 3, abs=1e-12)


def check_weights_and_margins(m: ModuleType) -> None:
    weights = torch.tensor([1.0, 3.0, 0.0], dtype=F64)
    found = m.bradley_terry_loss(SCORES, PAIRS, weights=weights, margins=torch.tensor([0.5, 1.0, 9.0])).item()
    assert found == pytest.approx((_nll(1.0) + 3 * _nll(0.0)) / 4, abs=1e-12)


def check_ties(m: ModuleType) -> None:
    ties = torch.tensor([True, False, False])
    found = m.bradley_terry_loss(SCORES, PAIRS, margins=torch.tensor([9.0, 0.0, 0.0]), ties=ties).item()
    expected = (0.5 * _nll(1.5) + 0.5 * _nll(-1.5) + _nll(1.0) + _nll(2.5)) / 3
    assert found == pytest.approx(expected, abs=1e-12)
    # a tie is least costly between equals
    equal = torch.zeros(2, dtype=F64, requires_grad=True)
    loss = m.bradley_terry_loss(equal, torch.tensor([[0, 1]]), ties=torch.tensor([True]))
    assert torch.autograd.grad(loss, equal)[0].tolist() == [0.0, 0.0]


def check_recovery(m: ModuleType) -> None:
    """Annotators choose by σ(Δu): the maximum of the likelihood is u, up to a constant."""
    utilities = np.array([-1.2, -0.3, 0.1, 0.6, 1.5])
    pairs = list(itertools.permutations(range(5), 2))
    shares = [1 / (1 + math.exp(utilities[j] - utilities[i])) for i, j in pairs]  # of infinitely many judgements
    scores = torch.zeros(5, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = m.bradley_terry_loss(scores, torch.tensor(pairs), weights=torch.tensor(shares, dtype=F64))
        loss.backward()
        return loss

    optimizer.step(closure)
    found = scores.detach().numpy()
    np.testing.assert_allclose(found - found.mean(), utilities - utilities.mean(), atol=1e-5)


@pytest.mark.parametrize("check", [check_by_hand, check_weights_and_margins, check_ties, check_recovery])
def test_formula(check) -> None:
    check(preference)


def test_gradients() -> None:
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: preference.bradley_terry_loss(s, PAIRS), scores)


def test_no_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 0"):
        preference.bradley_terry_loss(SCORES, PAIRS, weights=torch.zeros(3))
