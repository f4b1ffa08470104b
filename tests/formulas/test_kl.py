"""KL estimators and the adaptive coefficient."""

from types import ModuleType

import pytest
import torch

from alignment.ppo import kl

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)


def check_expectation(m: ModuleType) -> None:
    for estimator in ("k1", "k3"):
        found = (P * m.kl_estimate(P.log(), Q.log(), estimator)).sum().item()
        assert found == pytest.approx(0.09927, abs=5e-6)  # Σ p log(p/q), to five digits


def check_k3_is_never_negative(m: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = 3 * torch.randn(2, 1000, dtype=torch.float64, generator=generator)
    assert m.kl_estimate(a, b, "k3").min() >= 0
    assert m.kl_estimate(a, b, "k1").min() < 0
    assert m.kl_estimate(a, a, "k3").abs().max() == 0


def check_controller(m: ModuleType) -> None:
    assert m.adapted_kl_coef(0.1, 12.0, 6.0, 0.1) == pytest.approx(0.102, abs=1e-12)
    assert m.adapted_kl_coef(0.1, 6.6, 6.0, 0.1) == pytest.approx(0.101, abs=1e-12)
    assert m.adapted_kl_coef(0.1, 0.0, 6.0, 0.1) == pytest.approx(0.098, abs=1e-12)
    assert m.adapted_kl_coef(0.1, 6.0, 6.0, 0.1) == 0.1
    assert m.adapted_kl_coef(0.1, 99.0, None, 0.1) == 0.1
    rising = [m.adapted_kl_coef(0.1, x, 6.0, 0.1) for x in torch.linspace(-50, 50, 101).tolist()]
    assert rising == sorted(rising)
    assert min(rising) == pytest.approx(0.098, abs=1e-12) and max(rising) == pytest.approx(0.102, abs=1e-12)


@pytest.mark.parametrize("check", [check_expectation, check_k3_is_never_negative, check_controller])
def test_formula(check) -> None:
    check(kl)


def test_gradients() -> None:
    logs = P.log().requires_grad_()
    for estimator in ("k1", "k3"):
        assert torch.autograd.gradcheck(lambda x, e=estimator: kl.kl_estimate(x, Q.log(), e), logs)
