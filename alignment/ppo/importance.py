"""Importance weights for responses that another engine sampled than the learner computes with: pure functions."""

import torch
from torch import Tensor

from alignment.ppo.kl import kl_estimate


def truncated_weights(logprobs: Tensor, sampler_logprobs: Tensor, truncation: float) -> Tensor:
    """Truncated importance weights of tokens (Ionides 2008; for rollouts: Yao 2025, "Your efficient RL framework
    secretly brings you off-policy RL training").

    An engine samples from μ, which differs from the learner's π by rounding, kernels or stale weights, even where both
    have the same weights in name. Weighing each token's loss corrects the expectation; truncation bounds its variance.

    w = min( π(a) / μ(a), C )

    `logprobs` are the learner's before the update, and the ratio of PPO is still that of the updated policy to them.
    Shapes: (...), (...) -> (...).
    """
    return torch.exp(logprobs - sampler_logprobs).clamp(max=truncation)


def mismatch(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, truncation: float) -> dict[str, float]:
    """How far the engine is from the learner, over all response tokens: KL[μ ‖ π] per token by k3, mean and largest
    ratio π / μ, and the share of tokens with a ratio above the truncation. Shapes: (B, T) each, `mask` bool."""
    learner, sampler = logprobs[mask].double(), sampler_logprobs[mask].double()
    ratio = torch.exp(learner - sampler)
    return {
        "sampler_kl": float(kl_estimate(sampler, learner, "k3").mean()),
        "sampler_ratio": float(ratio.mean()),
        "sampler_ratio_largest": float(ratio.max()),
        "truncated_share": float((ratio > truncation).double().mean()),
    }
