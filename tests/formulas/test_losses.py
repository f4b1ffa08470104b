"""The clipped surrogate, the clipped value loss and the masked mean."""

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from alignment.ppo import losses

F64 = torch.float64


def _surrogate(m: ModuleType, ratio: float, advantage: float) -> tuple[float, float]:
    logprob = torch.tensor(math.log(ratio) - 1.0, dtype=F64, requires_grad=True)
    loss = m.clipped_surrogate(logprob, torch.tensor(-1.0, dtype=F64), torch.tensor(advantage, dtype=F64), 0.2)
    (gradient,) = torch.autograd.grad(loss, logprob)
    return loss.item(), gradient.item()


def check_surrogate_by_hand(m: ModuleType) -> None:
    expected = {
        (1.5, 1.0): (-1.2, True),
        (0.5, 1.0): (-0.5, False),
        (1.5, -1.0): (1.5, False),
        (0.5, -1.0): (0.8, True),
    }
    for (ratio, advantage), (loss, flat) in expected.items():
        found, gradient = _surrogate(m, ratio, advantage)
        assert found == pytest.approx(loss, abs=1e-12)
        assert (gradient == 0) == flat


def check_on_policy_gradient(m: ModuleType) -> None:
    """At θ = θ_old the gradient is the policy gradient, that of −mean(A log π)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=F64, generator=generator, requires_grad=True)
    a = torch.randn(6, dtype=F64, generator=generator)
    logprobs = logits.log_softmax(-1)[torch.arange(6), torch.tensor([0, 1, 2, 3, 0, 1])]
    (ppo,) = torch.autograd.grad(
        m.clipped_surrogate(logprobs, logprobs.detach(), a, 0.2).mean(), logits, retain_graph=True
    )
    (plain,) = torch.autograd.grad(-(a * logprobs).mean(), logits)
    torch.testing.assert_close(ppo, plain)


def check_value_by_hand(m: ModuleType) -> None:
    value = torch.tensor(0.5, dtype=F64, requires_grad=True)
    zero, one = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    loss = m.clipped_value_loss(value, zero, one, 0.2)
    assert loss.item() == pytest.approx(0.32, abs=1e-12)  # ½ (0.2 − 1)²
    assert torch.autograd.grad(loss, value)[0].item() == 0
    plain = m.clipped_value_loss(value, zero, one, None)
    assert plain.item() == pytest.approx(0.125, abs=1e-12)  # ½ (0.5 − 1)²
    assert torch.autograd.grad(plain, value)[0].item() == pytest.approx(-0.5, abs=1e-12)


def check_numpy_reference(m: ModuleType) -> None:
    rng = np.random.default_rng(0)
    new, old, a, v, v_old, r = rng.normal(size=(6, 50))
    ratio = np.exp(new - old)
    surrogate = np.where(a > 0, -np.minimum(ratio, 1.2) * a, -np.maximum(ratio, 0.8) * a)
    as_tensors: list[Tensor] = [torch.from_numpy(x) for x in (new, old, a, v, v_old, r)]
    found = m.clipped_surrogate(*as_tensors[:3], 0.2).numpy()
    np.testing.assert_allclose(found, surrogate, atol=1e-12)
    near = np.clip(v, v_old - 0.2, v_old + 0.2)
    value = 0.5 * np.maximum((v - r) ** 2, (near - r) ** 2)
    np.testing.assert_allclose(m.clipped_value_loss(*as_tensors[3:], 0.2).numpy(), value, atol=1e-12)


def check_masked_mean(m: ModuleType) -> None:
    x = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, 9.0]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert m.masked_mean(x, mask).item() == pytest.approx(3.0, abs=1e-12)


CHECKS = [
    check_surrogate_by_hand,
    check_on_policy_gradient,
    check_value_by_hand,
    check_numpy_reference,
    check_masked_mean,
]


@pytest.mark.parametrize("check", CHECKS)
def test_formula(check) -> None:
    check(losses)


def test_gradients_away_from_kinks() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0], dtype=F64)
    new = (old + torch.tensor([0.05, -0.1, 0.5, -0.5, 0.01], dtype=F64)).requires_grad_()
    a = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5], dtype=F64)
    assert torch.autograd.gradcheck(lambda x: losses.clipped_surrogate(x, old, a, 0.2), new)
    values = torch.tensor([0.05, 0.5, -0.6], dtype=F64, requires_grad=True)
    zeros, returns = torch.zeros(3, dtype=F64), torch.tensor([1.0, -1.0, 0.3], dtype=F64)
    assert torch.autograd.gradcheck(lambda x: losses.clipped_value_loss(x, zeros, returns, 0.2), values)
