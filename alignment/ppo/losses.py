"""The losses of PPO per token, and the mean over response tokens: pure functions."""

import torch
from torch import Tensor


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate objective as a loss (Schulman 2017, eq. 7), for each token.

    ρ = π(a|s) / π_old(a|s)        loss = −min( ρ A, clip(ρ, 1−ε, 1+ε) A )

    Shapes: all (...), and so is the result; the caller takes the mean over response tokens.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> Tensor:
    """Squared error of the value, the larger of plain and clipped (Schulman's baselines), for each token.

    loss = ½ max( (V − R)², (V_old + clip(V − V_old, −ε, ε) − R)² );   without a clip range, ½ (V − R)².

    Shapes: all (...), and so is the result.
    """
    squared = (values - returns) ** 2
    if clip_range is not None:
        clipped = old_values + torch.clamp(values - old_values, -clip_range, clip_range)
        squared = torch.maximum(squared, (clipped - returns) ** 2)
    return 0.5 * squared


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the elements whose mask is True; other elements, even NaN, are ignored. Shape: scalar."""
    return torch.where(mask, x, 0).sum() / mask.sum()
