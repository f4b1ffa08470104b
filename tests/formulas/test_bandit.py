"""One-step bandit: PPO with the KL in its reward ends at π*(a) ∝ π_ref(a) exp(r(a)/β), the known optimum."""

from collections.abc import Mapping
from types import ModuleType

import torch

from tests.formulas.models import module

F64 = torch.float64
BETA = 0.5


def ppo_bandit(m: Mapping[str, ModuleType], rewards: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """PPO on exact expectations: every arm is an episode of one token, weighted by the probability of drawing it."""
    logits = reference.log().clone().requires_grad_()
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    for _ in range(500):
        old = logits.detach().log_softmax(-1)
        kl = m["ppo.kl"].kl_estimate(old, reference.log(), "k1")
        shaped = m["ppo.shaping"].token_rewards(rewards, kl.unsqueeze(-1), mask, BETA)
        value = (old.exp() * shaped[:, 0]).sum().expand(len(rewards), 1)
        advantages, _ = m["ppo.advantages"].gae(shaped, value, mask, 1.0, 0.95)
        for _ in range(2):
            loss = m["ppo.losses"].clipped_surrogate(logits.log_softmax(-1), old, advantages[:, 0], 0.2)
            (gradient,) = torch.autograd.grad((old.exp() * loss).sum(), logits)
            with torch.no_grad():
                logits -= 0.5 * gradient
    return logits.detach().softmax(-1)


def check_closed_form(m: Mapping[str, ModuleType]) -> None:
    rewards = torch.tensor([0.0, 0.5, -0.4, 0.3], dtype=F64)
    reference = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=F64)
    tilted = reference * torch.exp(rewards / BETA)
    torch.testing.assert_close(ppo_bandit(m, rewards, reference), tilted / tilted.sum(), rtol=0, atol=1e-5)


MODULES = {name: module(name) for name in ("ppo.kl", "ppo.shaping", "ppo.advantages", "ppo.losses")}


def test_closed_form() -> None:
    check_closed_form(MODULES)
