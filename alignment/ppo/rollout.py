"""A rollout: responses sampled from the policy, scored, and turned into advantages."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed.threads import side_by_side
from alignment.models.generation import Sample
from alignment.models.heads import at_least_float32
from alignment.models.logprobs import ScoringBatch, response_logprobs
from alignment.ppo.advantages import gae, whiten
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import Episodes, Rollout, Scored, micro_batches
from alignment.ppo.importance import truncated_weights
from alignment.ppo.kl import kl_estimate
from alignment.ppo.memory import computes_in_half, computing
from alignment.ppo.shaping import clipped_score, length_penalised, missing_eos_score, token_rewards
from alignment.ppo.trunk import shares_trunk
from alignment.ppo.values import policy_and_values, response_values
from alignment.rewards.components import Component, component_scores, total_score
from alignment.rollout.engine import Engine, NativeEngine, Sampling


def sample_episodes(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: PPOConfig,
    eos_token_ids: Collection[int],
    uniforms: Tensor,
    engine: Engine | None = None,
) -> Episodes:
    """Sample a response to each prompt, with its log-probabilities as the engine (by default `native`) computed them.

    `uniforms`, (B, max_new_tokens) in [0, 1), determine the tokens, so that a response does not depend on the rest of
    its batch (see `generate`).
    Those of the native engine in float32 equal those of a full forward to about 1e-6 (logged as `sampling_mismatch`),
    so no forward is spent on them; in half precision, or from another engine, they differ, and scoring recomputes them.
    """
    sampling = Sampling(
        config.max_new_tokens, config.temperature, frozenset(eos_token_ids), config.generation_batch_size
    )
    with computing(config, policy.device):
        samples = (engine or NativeEngine()).sample(policy, prompts, sampling, uniforms)
    return episodes_of(prompts, samples, policy)


def episodes_of(prompts: Sequence[Sequence[int]], samples: Sequence[Sample], policy: PreTrainedModel) -> Episodes:
    """Prompts with their responses, on the policy's device."""
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
        sampler_logprobs=logprobs.to(policy.device, copy=True),
        ended=torch.tensor([sample.ended for sample in samples], device=policy.device),
    )


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
    """Score the responses, and compute reference log-probabilities and values.

    Where the sampler's log-probabilities are not the policy's (half precision, another engine), the episodes' are
    replaced by those of a full forward, as in the update.
    """
    device = episodes.logprobs.device
    parts = component_scores(
        components, tokenizer, episodes.sequences, episodes.prompt_lengths, config.micro_batch_tokens
    )
    reference_logprobs, values = torch.zeros_like(episodes.logprobs), torch.zeros_like(episodes.logprobs)
    batches = micro_batches(episodes, config, device)

    @torch.no_grad()
    def compute_reference_logprobs() -> None:
        for batch in batches:
            with computing(config, device):
                logprobs = response_logprobs(reference, batch, config.temperature)
            reference_logprobs[batch.sequence, batch.time] = logprobs.to(values)

    @torch.no_grad()
    def estimate_values() -> None:
        for batch in batches:
            at = (batch.sequence, batch.time)
            with computing(config, device):
                if not recomputes_logprobs(policy, config):
                    values[at] = response_values(value_model, batch).to(values)
                else:
                    logprobs, values_now = _logprobs_and_values(policy, value_model, batch, config.temperature)
                    episodes.logprobs[at], values[at] = logprobs.to(values), values_now.to(values)

    side_by_side(estimate_values, compute_reference_logprobs, device)
    positions = sum(batch.input_ids.numel() for batch in batches)
    real_positions = sum(batch.real_tokens for batch in batches)
    return Scored(episodes, parts, reference_logprobs, values, real_positions, positions)


def recomputes_logprobs(policy: PreTrainedModel, config: PPOConfig) -> bool:
    """Whether the sampler's log-probabilities differ from a full forward's by more than the rounding of float32."""
    return config.rollout.engine != "native" or computes_in_half(policy, config)


def _logprobs_and_values(
    policy: PreTrainedModel,
    value_model: PreTrainedModel,
    batch: ScoringBatch,
    temperature: float,
    learn_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """log π(token) and the value before it, in one forward if the trunk is shared. Shapes: (n,), (n,)."""
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
    weights = importance_weights(episodes, config)
    return Rollout(
        episodes, parts, reward, score, reference_logprobs, values, advantages, returns, weights, padding_share
    )


def importance_weights(episodes: Episodes, config: PPOConfig) -> Tensor:
    """The weight of each token's policy loss: 1 where the policy itself sampled. Shape: (B, T)."""
    if config.rollout.engine == "native" or not config.rollout.correct:
        return torch.ones_like(episodes.logprobs)
    return truncated_weights(episodes.logprobs, episodes.sampler_logprobs, config.rollout.truncation)


def shaped_score(reward: Tensor, episodes: Episodes, config: PPOConfig) -> Tensor:
    """The score after length penalty, clipping and missing EOS, in this order. Shape: (B,)."""
    score = length_penalised(reward, episodes.lengths, config.length_penalty)
    score = clipped_score(score, config.score_clip)
    return missing_eos_score(score, episodes.ended, config.missing_eos_penalty, config.missing_eos)
