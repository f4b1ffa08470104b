"""The data of a rollout: sampled responses, their scores, and the advantages for the update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.models.logprobs import ScoringBatch, scoring_batches
from alignment.ppo.config import PPOConfig
from alignment.ppo.kl import kl_estimate


@dataclass(frozen=True)
class Episodes:
    """B prompts with their sampled responses.

    `logprobs` are the learner's and `sampler_logprobs` the engine's, which are the same where the policy itself sampled
    in float32. Shapes: response_mask, logprobs, sampler_logprobs (B, T), T the longest response; ended (B,) bool.
    """

    sequences: list[list[int]]
    prompt_lengths: list[int]
    response_mask: Tensor
    logprobs: Tensor
    sampler_logprobs: Tensor
    ended: Tensor

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each episode, the EOS included. Shape: (B,)."""
        return self.response_mask.sum(-1)


@dataclass(frozen=True)
class Scored:
    """Episodes with the models' outputs, of a single process or of all. Shapes: (B,) per component, (B, T) per tensor.

    `real_positions` and `positions` count the forwarded positions, without and with padding.
    """

    episodes: Episodes
    components: dict[str, Tensor]
    reference_logprobs: Tensor
    values: Tensor
    real_positions: int
    positions: int


@dataclass(frozen=True)
class Rollout:
    """Episodes with all inputs of an update; `weights` are importance weights.

    Shapes: (B, T) for values per token, (B,) for `score`.
    """

    episodes: Episodes
    components: dict[str, Tensor]
    reward: Tensor
    score: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor
    padding_share: float

    @property
    def kl(self) -> Tensor:
        """Unbiased estimate of KL[π ‖ π_ref] of each response, in nats: the sum of k1 over its tokens. Shape: (B,)."""
        difference = kl_estimate(self.episodes.logprobs, self.reference_logprobs, "k1")
        return torch.where(self.episodes.response_mask, difference, 0).sum(-1)


def micro_batches(
    episodes: Episodes, config: PPOConfig, device: torch.device, rows: Sequence[int] | None = None
) -> list[ScoringBatch]:
    """Episodes (all, or only `rows`) sorted by length into micro-batches under the token budget."""
    return scoring_batches(episodes.sequences, episodes.prompt_lengths, config.micro_batch_tokens, device, rows)
