"""Generalized advantage estimation, whitening and explained variance against hand-computed and NumPy values."""

from types import ModuleType

import numpy as np
import pytest
import torch

from alignment.ppo import advantages

GAMMA, LAMBDA = 0.9, 0.8


def _random(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(5, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    lengths = torch.tensor([7, 1, 4, 6, 3])
    return rewards, values, torch.arange(7) < lengths.unsqueeze(-1)


def _naive(rewards: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float) -> np.ndarray:
    """A_t = Σ_l (γλ)^l δ_{t+l}, each sum written out: O(T²)."""
    following = np.append(values[1:], 0.0)
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(len(rewards))]
    return np.array(
        [sum((gamma * gae_lambda) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]
    )


def check_by_hand(m: ModuleType) -> None:
    r = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    v = torch.tensor([[0.5, 0.25, 0.75]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    a, returns = m.gae(r, v, mask, 1.0, 0.5)
    assert a.tolist() == [[0.0625, 0.625, 0.25]]
    assert returns.tolist() == [[0.5625, 0.875, 1.0]]
    assert m.gae(r, v, mask, 1.0, 1.0)[0].tolist() == [[0.5, 0.75, 0.25]]


def check_naive_sum(m: ModuleType) -> None:
    rewards, values, mask = _random()
    a, returns = m.gae(rewards, values, mask, GAMMA, LAMBDA)
    for row, length in enumerate(mask.sum(-1).tolist()):
        expected = _naive(rewards[row, :length].numpy(), values[row, :length].numpy(), GAMMA, LAMBDA)
        np.testing.assert_allclose(a[row, :length], expected, atol=1e-12)
        np.testing.assert_allclose(returns[row, :length], expected + values[row, :length].numpy(), atol=1e-12)
        assert not a[row, length:].any() and not returns[row, length:].any()


def check_padding(m: ModuleType) -> None:
    rewards, values, mask = _random()
    clean = m.gae(rewards, values, mask, GAMMA, LAMBDA)
    dirty = m.gae(
        rewards.masked_fill(~mask, float("nan")), values.masked_fill(~mask, float("inf")), mask, GAMMA, LAMBDA
    )
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


def check_whitening(m: ModuleType) -> None:
    x, _, mask = _random(3)
    x = 5 + 3 * x
    kept = m.whiten(x.masked_fill(~mask, float("nan")), mask)[mask].numpy()
    assert abs(kept.mean()) < 1e-12 and abs(kept.var() - 1) < 1e-6  # ε = 1e-8 stands under the root
    unshifted = m.whiten(x, mask, shift_mean=False)[mask].numpy()
    np.testing.assert_allclose(unshifted, x[mask].numpy() / x[mask].numpy().std(), rtol=1e-7)
    assert not m.whiten(x, mask)[~mask].any()


def check_explained_variance(m: ModuleType) -> None:
    values, returns, mask = _random(4)
    v, r = values[mask].numpy(), returns[mask].numpy()
    assert m.explained_variance(values, returns, mask) == pytest.approx(1 - (r - v).var() / r.var(), abs=1e-12)
    assert m.explained_variance(returns + 2, returns, mask) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "check", [check_by_hand, check_naive_sum, check_padding, check_whitening, check_explained_variance]
)
def test_formula(check) -> None:
    check(advantages)


def test_lambda_0_is_the_td_error() -> None:
    rewards, values, mask = _random(1)
    following = torch.cat([torch.where(mask, values, 0)[:, 1:], torch.zeros(5, 1, dtype=torch.float64)], dim=1)
    expected = torch.where(mask, rewards + GAMMA * following - values, 0)
    torch.testing.assert_close(advantages.gae(rewards, values, mask, GAMMA, 0.0)[0], expected)


def test_lambda_1_is_return_minus_value() -> None:
    rewards, values, mask = _random(2)
    _, returns = advantages.gae(rewards, values, mask, GAMMA, 1.0)
    for row, length in enumerate(mask.sum(-1).tolist()):
        r = rewards[row, :length].tolist()
        discounted = [sum(GAMMA ** (k - t) * r[k] for k in range(t, length)) for t in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(discounted, abs=1e-12)
