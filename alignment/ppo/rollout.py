"""A rollout: responses sampled from the policy, scored, and turned into advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed.threads import side_by_side
from alignment.models.generation import generate
from alignment.models.logprobs import (
    ScoringBatch,
    at_least_float32,
    read_only_at,
    response_logprobs,
    response_logprobs_and_entropy,
    scoring_batches,
)
from alignment.models.scalar import head_values, normalised
from alignment.ppo.advantages import gae, whiten
from alignment.ppo.config import PPOConfig
from alignment.ppo.kl import kl_estimate
from alignment.ppo.memory import computes_in_half, computing
from alignment.ppo.shaping import clipped_score, length_penalised, missing_eos_score, token_rewards
from alignment.rewards.components import Component, component_scores, total_score


@dataclass(frozen=True)
class Episodes:
    """B prompts with their sampled responses.

    Shapes: response_mask, logprobs (B, T), T the longest response; ended (B,) bool.
    """

    sequences: list[list[int]]
    prompt_lengths: list[int]
    response_mask: Tensor
    logprobs: Tensor
    ended: Tensor

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each episode, the EOS included. Shape: (B,)."""
        return self.response_mask.sum(-1)


@dataclass(frozen=True)
class Scored:
    """Episodes with what models say of them, one process's or all. Shapes: (B,) a component, (B, T) a tensor.

    Positions are what the scoring forwarded: those that held a token, and all of them.
    """

    episodes: Episodes
    components: dict[str, Tensor]
    reference_logprobs: Tensor
    values: Tensor
    real_positions: int
    positions: int


@dataclass(frozen=True)
class Rollout:
    """Episodes with all that an update needs. Shapes: (B, T) for tensors a token, (B,) for `score`."""

    episodes: Episodes
    components: dict[str, Tensor]
    reward: Tensor
    score: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    padding_share: float

    @property
    def kl(self) -> Tensor:
        """Unbiased estimate of KL[π ‖ π_ref] of each response, in nats: the sum of k1 over its tokens. Shape: (B,)."""
        difference = kl_estimate(self.episodes.logprobs, self.reference_logprobs, "k1")
        return torch.where(self.episodes.response_mask, difference, 0).sum(-1)


def sample_episodes(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: PPOConfig,
    eos_token_ids: set[int],
    uniforms: Tensor,
) -> Episodes:
    """Sample one response a prompt, with the log-probabilities it was drawn with.

    `uniforms`, (B, max_new_tokens) in [0, 1), decide each token, so that a response does not depend on its neighbours
    (see `generate`).
    In single precision these equal those of a full forward to about 1e-6 (`sampling_mismatch` in the log keeps watch),
    so no forward is spent on them; in half precision the difference would matter, and scoring computes them afresh.
    """
    with computing(config, policy.device):
        samples = generate(
            policy,
            prompts,
            max_new_tokens=config.max_new_tokens,
            eos_token_ids=eos_token_ids,
            temperature=config.temperature,
            uniforms=uniforms,
            batch_size=config.generation_batch_size,
        )
    sequences = [[*prompt, *sample.tokens] for prompt, sample in zip(prompts, samples, strict=True)]
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    logprobs = torch.zeros(mask.shape, dtype=at_least_float32(torch.empty(0, dtype=policy.dtype)).dtype)
    logprobs[mask] = torch.tensor([p for sample in samples for p in sample.logprobs], dtype=logprobs.dtype)
    return Episodes(
        sequences=sequences,
        prompt_lengths=[len(prompt) for prompt in prompts],
        response_mask=mask.to(policy.device),
        logprobs=logprobs.to(policy.device),
        ended=torch.tensor([sample.ended for sample in samples], device=policy.device),
    )


def micro_batches(
    episodes: Episodes, config: PPOConfig, device: torch.device, rows: Sequence[int] | None = None
) -> list[ScoringBatch]:
    """Episodes (all, or the given rows) sorted by length into micro-batches under the token budget."""
    return scoring_batches(episodes.sequences, episodes.prompt_lengths, config.micro_batch_tokens, device, rows)


def response_values(value_model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """V before each response token, in units of the normalised score, read where its logits are. Shape: (n,)."""
    with read_only_at(value_model, batch.row, batch.position):
        hidden = value_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return values_at(value_model, hidden[batch.row, batch.position])


def shares_trunk(policy: PreTrainedModel, value_model: PreTrainedModel) -> bool:
    """Whether the value model's head sits on the policy's own trunk."""
    return value_model.base_model is policy.base_model


def policy_and_values(
    policy: PreTrainedModel,
    value_model: PreTrainedModel,
    batch: ScoringBatch,
    temperature: float,
    learn_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(token), entropy and V before the token from one forward of the trunk they share. Shapes: (n,) each."""
    hidden: list[Tensor] = []
    hook = policy.base_model.register_forward_hook(
        lambda _, __, output: hidden.append(output.last_hidden_state[batch.row, batch.position])
    )
    try:
        logprobs, entropy = response_logprobs_and_entropy(policy, batch, temperature, learn_entropy)
    finally:
        hook.remove()
    return logprobs, entropy, values_at(value_model, hidden[0])


def values_with_still_trunk(value_model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """V with gradients to the head alone, and no graph of the trunk. Shape: (n,)."""
    with torch.no_grad():
        hidden = value_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return values_at(value_model, hidden[batch.row, batch.position])


def values_at(value_model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """V for each hidden state of the trunk, in units of the normalised score. Shapes: (n, h) -> (n,)."""
    return normalised(value_model, head_values(value_model, hidden))


@torch.no_grad()
def score_episodes(
    episodes: Episodes,
    components: Sequence[Component],
    reference: PreTrainedModel,
    policy: PreTrainedModel,
    value_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PPOConfig,
) -> Scored:
    """Score the responses, compare them with the reference, and estimate values.

    In half precision the policy's log-probabilities are put into the episodes, as the update will compute them.
    """
    device = episodes.logprobs.device
    parts = component_scores(
        components, tokenizer, episodes.sequences, episodes.prompt_lengths, config.micro_batch_tokens
    )
    reference_logprobs, values = torch.zeros_like(episodes.logprobs), torch.zeros_like(episodes.logprobs)
    batches = micro_batches(episodes, config, device)

    @torch.no_grad()
    def ask_reference() -> None:
        for batch in batches:
            with computing(config, device):
                found = response_logprobs(reference, batch, config.temperature)
            reference_logprobs[batch.sequence, batch.time] = found.to(values)

    @torch.no_grad()
    def estimate_values() -> None:
        for batch in batches:
            at = (batch.sequence, batch.time)
            with computing(config, device):
                if not computes_in_half(policy, config):
                    values[at] = response_values(value_model, batch).to(values)
                else:
                    logprobs, values_now = _logprobs_and_values(policy, value_model, batch, config.temperature)
                    episodes.logprobs[at], values[at] = logprobs.to(values), values_now.to(values)

    side_by_side(estimate_values, ask_reference, device)
    positions = sum(batch.input_ids.numel() for batch in batches)
    real_positions = sum(batch.real_tokens for batch in batches)
    return Scored(episodes, parts, reference_logprobs, values, real_positions, positions)


def _logprobs_and_values(
    policy: PreTrainedModel,
    value_model: PreTrainedModel,
    batch: ScoringBatch,
    temperature: float,
    learn_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """log π(token) and V before it, in one forward where there is one trunk. Shapes: (n,), (n,)."""
    if shares_trunk(policy, value_model):
        logprobs, _, values = policy_and_values(policy, value_model, batch, temperature)
        return logprobs, values
    return response_logprobs(policy, batch, temperature), response_values(value_model, batch)


def rollout_of(scored: Scored, components: Sequence[Component], config: PPOConfig, kl_coef: float) -> Rollout:
    """Rewards and advantages of the whole rollout, so that whitening sees every episode of every process."""
    episodes, mask, values = scored.episodes, scored.episodes.response_mask, scored.values
    reward = total_score(components, scored.components).to(episodes.logprobs)
    score = shaped_score(reward, episodes, config)
    kl = kl_estimate(episodes.logprobs, scored.reference_logprobs, config.kl_estimator)
    rewards = token_rewards(score, kl, mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.gae_lambda)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    parts, reference_logprobs = scored.components, scored.reference_logprobs
    padding_share = 1 - scored.real_positions / scored.positions
    return Rollout(episodes, parts, reward, score, reference_logprobs, values, advantages, returns, padding_share)


def shaped_score(reward: Tensor, episodes: Episodes, config: PPOConfig) -> Tensor:
    """The score after length penalty, clipping and missing EOS, in this order. Shape: (B,)."""
    score = length_penalised(reward, episodes.lengths, config.length_penalty)
    score = clipped_score(score, config.score_clip)
    return missing_eos_score(score, episodes.ended, config.missing_eos_penalty, config.missing_eos)
