"""From the score of a response to a reward for each of its tokens: pure functions."""

import torch
from torch import Tensor


def missing_eos_score(scores: Tensor, ended: Tensor, penalty: float, mode: str) -> Tensor:
    """The score of a response without EOS: its score minus the penalty ("subtract"), or −penalty ("replace").

    Shapes: scores (B,), ended (B,) bool -> (B,).
    """
    assert mode in ("subtract", "replace"), mode
    unfinished = scores - penalty if mode == "subtract" else torch.full_like(scores, -penalty)
    return torch.where(ended, scores, unfinished)


def length_penalised(scores: Tensor, lengths: Tensor, penalty: float) -> Tensor:
    """score − penalty · (number of response tokens). Shapes: (B,), (B,) -> (B,)."""
    return scores - penalty * lengths


def clipped_score(scores: Tensor, limit: float | None) -> Tensor:
    """Scores clipped to ± limit. Shape: (B,) -> (B,)."""
    return scores if limit is None else torch.clamp(scores, -limit, limit)


def token_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = −β KL_t, plus the score at the last response token (the EOS, if any).

    This is Ouyang 2022, eq. 2, spread over the tokens as in Ziegler 2019.
    Shapes: scores (B,), kl (B, T), response_mask (B, T), every row with at least one response token -> (B, T).
    """
    rewards = torch.where(response_mask, -kl_coef * kl, 0)
    last = response_mask.sum(-1) - 1
    return rewards.scatter_add(1, last.unsqueeze(-1), scores.unsqueeze(-1).to(rewards))
