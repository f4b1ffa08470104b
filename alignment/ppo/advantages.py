"""Advantages: how much better a token was than the value model expected. Pure functions on (B, T) tensors."""

import torch
from torch import Tensor

from alignment.ppo.losses import masked_mean


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman 2016, eq. 16), and the returns, the targets of the value model.

    δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}        R_t = A_t + V_t

    V_t is the value before token t. An episode ends with its last response token: after it V and A are 0.
    Shapes: all (B, T), response_mask True for response tokens. Returns advantages, returns; 0 in the padding.
    """
    zero = values.new_zeros(values.shape[0])
    masked_values = torch.where(response_mask, values, 0)
    advantages = torch.zeros_like(masked_values)
    next_advantage, next_value = zero, zero
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - masked_values[:, t]
        advantages[:, t] = torch.where(response_mask[:, t], delta + gamma * gae_lambda * next_advantage, 0)
        next_advantage, next_value = advantages[:, t], masked_values[:, t]
    return advantages, torch.where(response_mask, advantages + masked_values, 0)


def whiten(x: Tensor, response_mask: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale to variance 1 over the masked elements of the whole rollout, and shift to mean 0 if `shift_mean`.

    y = (x − mean) / sqrt(var + ε), with the population variance; without the shift, y = x / sqrt(var + ε).
    Shapes: (B, T), (B, T) -> (B, T), 0 in the padding.
    """
    mean = masked_mean(x, response_mask)
    variance = masked_mean((x - mean) ** 2, response_mask)
    shifted = x - mean if shift_mean else x
    return torch.where(response_mask, shifted * torch.rsqrt(variance + epsilon), 0)


def explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> float:
    """1 − Var[R − V] / Var[R] over the masked tokens: 1 for a perfect value model, 0 for an uninformative one."""
    error, target = (returns - values)[response_mask], returns[response_mask]
    return 1.0 - float(error.var(correction=0)) / max(float(target.var(correction=0)), 1e-12)
