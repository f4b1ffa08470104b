"""The update: epochs of minibatches over a rollout, each accumulated from micro-batches of similar length.

A loss is the mean over all response tokens of the minibatch: each micro-batch adds its sum divided by the tokens of the
whole minibatch, so how a minibatch is split affects only memory and rounding.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.distributed.collectives import gathered, share_of, sum_gradients
from alignment.distributed.sharding import add_gradients, whole_tensor
from alignment.distributed.threads import side_by_side
from alignment.errors import TrainingError
from alignment.models.logprobs import (
    ScoringBatch,
    no_tokens,
    response_logprobs,
    response_logprobs_and_entropy,
    scoring_batches,
)
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import Rollout, micro_batches
from alignment.ppo.kl import kl_estimate
from alignment.ppo.learner import Learner
from alignment.ppo.losses import clipped_surrogate, clipped_value_loss
from alignment.ppo.memory import computing
from alignment.ppo.prompts import cycled_rows, seeded
from alignment.ppo.values import policy_and_values, response_values, values_with_still_trunk

Sums = defaultdict[str, float]
Loss = Callable[[Learner, Rollout, ScoringBatch, PPOConfig, Sums], Tensor]


def update(
    learner: Learner,
    rollout: Rollout,
    config: PPOConfig,
    step: int,
    ptx_sequences: Sequence[Sequence[int]] | None = None,
) -> dict[str, float]:
    """Learn from a rollout, and return means over all tokens (losses, KL, clip shares) and optimizer steps (norms)."""
    train_policy = step >= config.value_warmup_steps
    shuffle = seeded(config.seed, "minibatches", step)
    totals: Sums = defaultdict(float)
    for epoch in range(config.epochs):
        order = torch.randperm(len(rollout.episodes.sequences), generator=shuffle).tolist()
        for start in range(0, len(order), config.minibatch_size):
            rows = order[start : start + config.minibatch_size]
            sums = _sums_over_processes(gathered(accumulate_gradients, learner, rollout, rows, config, train_policy))
            if epoch == start == 0 and train_policy:
                totals["sampling_mismatch"] = sums["largest_log_ratio"]  # before the first optimizer step
            for name, value in sums.items():
                totals[name] += value
            if _exceeds_target_kl(sums, config):
                _zero_gradients(learner)
                totals["update_stopped"] = 1
                return _means(totals)
            if train_policy and config.ptx_coef and ptx_sequences:
                number = int(totals["optimizer_steps"])
                losses = gathered(accumulate_ptx_gradients, learner, ptx_sequences, config, step, number)
                totals["ptx_loss"] += sum(losses)
            _step(learner, config, totals, train_policy)
    return _means(totals)


def accumulate_gradients(
    learner: Learner, rollout: Rollout, rows: Sequence[int], config: PPOConfig, train_policy: bool = True
) -> Sums:
    """Accumulate the gradients of a minibatch's losses in both models; return sums over its response tokens.

    Each process takes its share of the rows (longest first, so that all have similar work), and divides by the tokens
    of the whole minibatch.
    """
    episodes = rollout.episodes
    device = episodes.logprobs.device
    tokens = int(episodes.response_mask[torch.tensor(rows, device=device)].sum())
    sums: Sums = defaultdict(float, tokens=tokens)
    mine = share_of(sorted(rows, key=lambda row: -len(episodes.sequences[row])))
    batches = micro_batches(episodes, config, device, mine)

    def learn(model: PreTrainedModel, loss: Loss) -> Sums:
        loss_sums: Sums = defaultdict(float)
        add_gradients(
            learner.shards,
            model,
            batches,
            lambda batch: loss(learner, rollout, batch, config, loss_sums) / tokens,
            no_tokens(device),
        )
        return loss_sums

    learn_policy = partial(learn, learner.policy, _loss_of_both if learner.shares_trunk else _loss_of_policy)
    learn_value = partial(learn, learner.value_model, _loss_of_value)
    if not train_policy:
        parts: Iterable[Sums] = [learn_value()]
    elif learner.shares_trunk:
        parts = [learn_policy()]
    elif learner.shards is not None:
        parts = [learn_policy(), learn_value()]  # both are collectives, in the same order in every process
    else:
        parts = side_by_side(learn_policy, learn_value, device)
    for part in parts:
        sums.update(part)
    return sums


def _loss_of_policy(learner: Learner, rollout: Rollout, batch: ScoringBatch, config: PPOConfig, sums: Sums) -> Tensor:
    """The policy's loss on a micro-batch, summed over its tokens."""
    with computing(config, batch.input_ids.device):
        logprobs, entropy = response_logprobs_and_entropy(
            learner.policy, batch, config.temperature, config.entropy_coef != 0
        )
    return _policy_loss(logprobs, entropy, rollout, batch, config, sums)


def _loss_of_value(learner: Learner, rollout: Rollout, batch: ScoringBatch, config: PPOConfig, sums: Sums) -> Tensor:
    """The value's loss on a micro-batch, summed; with a shared trunk only its head is trained."""
    with computing(config, batch.input_ids.device):
        values = (values_with_still_trunk if learner.shares_trunk else response_values)(learner.value_model, batch)
    return _value_loss(values, rollout, batch, config, sums)


def _loss_of_both(learner: Learner, rollout: Rollout, batch: ScoringBatch, config: PPOConfig, sums: Sums) -> Tensor:
    """L = L_policy + value_coef · L_value for a shared trunk, summed over the tokens of a micro-batch."""
    with computing(config, batch.input_ids.device):
        logprobs, entropy, values = policy_and_values(
            learner.policy, learner.value_model, batch, config.temperature, config.entropy_coef != 0
        )
    policy_loss = _policy_loss(logprobs, entropy, rollout, batch, config, sums)
    return policy_loss + config.value_coef * _value_loss(values, rollout, batch, config, sums)


def _policy_loss(
    logprobs: Tensor, entropy: Tensor, rollout: Rollout, batch: ScoringBatch, config: PPOConfig, sums: Sums
) -> Tensor:
    """Clipped surrogate, times the importance weight, minus the entropy bonus, summed. Shapes: (n,), (n,) -> ()."""
    at = (batch.sequence, batch.time)
    old = rollout.episodes.logprobs[at]
    surrogate = rollout.weights[at] * clipped_surrogate(logprobs, old, rollout.advantages[at], config.clip_range)
    _add_policy_sums(sums, surrogate.detach(), logprobs.detach(), old, entropy.detach(), config)
    return (surrogate - config.entropy_coef * entropy).sum()


def _value_loss(values: Tensor, rollout: Rollout, batch: ScoringBatch, config: PPOConfig, sums: Sums) -> Tensor:
    """Clipped value loss, summed. Shapes: (n,) -> ()."""
    at = (batch.sequence, batch.time)
    loss = clipped_value_loss(values, rollout.values[at], rollout.returns[at], config.value_clip_range)
    sums["value_loss"] += float(loss.detach().sum())
    if config.value_clip_range is not None:
        moved = (values.detach() - rollout.values[at]).abs() > config.value_clip_range
        sums["value_clip_fraction"] += int(moved.sum())
    return loss.sum()


def _add_policy_sums(
    sums: Sums, surrogate: Tensor, logprobs: Tensor, old: Tensor, entropy: Tensor, config: PPOConfig
) -> None:
    log_ratio = logprobs - old
    sums["policy_loss"] += float(surrogate.sum())
    sums["entropy"] += float(entropy.sum())
    sums["approx_kl"] += float(kl_estimate(old, logprobs, "k3").sum())
    sums["clip_fraction"] += int(((log_ratio.exp() - 1).abs() > config.clip_range).sum())
    if len(log_ratio):
        sums["largest_log_ratio"] = max(sums["largest_log_ratio"], float(log_ratio.abs().max()))


def _sums_over_processes(shares: Sequence[Sums]) -> Sums:
    """The sums over all processes; each process counts all tokens, and the largest log-ratio is a maximum."""
    sums: Sums = defaultdict(float)
    for share in shares:
        for name, value in share.items():
            sums[name] += value
    sums["tokens"] = shares[0]["tokens"]
    if "largest_log_ratio" in sums:
        sums["largest_log_ratio"] = max(share.get("largest_log_ratio", 0.0) for share in shares)
    return sums


def _exceeds_target_kl(sums: Sums, config: PPOConfig) -> bool:
    """Whether KL[π_old ‖ π] per token of this minibatch is above `update_target_kl`."""
    return config.update_target_kl is not None and sums["approx_kl"] / sums["tokens"] > config.update_target_kl


def accumulate_ptx_gradients(
    learner: Learner, sequences: Sequence[Sequence[int]], config: PPOConfig, step: int, minibatch: int
) -> float:
    """Add the gradient of ptx_coef · (next-token loss on pretraining text) (Ouyang 2022, eq. 2); return the loss."""
    number = step * config.epochs * (config.batch_size // config.minibatch_size) + minibatch
    rows = cycled_rows(len(sequences), config.ptx_batch_size, number, config.seed, "ptx")
    drawn = [sequences[row] for row in rows]
    tokens = sum(len(sequence) - 1 for sequence in drawn)
    mine = share_of(drawn)
    policy, losses = learner.policy, [0.0]

    def weighted_loss(batch: ScoringBatch) -> Tensor:
        with computing(config, policy.device):
            loss = -response_logprobs(policy, batch).sum() / tokens
        losses.append(float(loss.detach()))
        return config.ptx_coef * loss

    batches = scoring_batches(mine, [1] * len(mine), config.micro_batch_tokens, policy.device)
    add_gradients(learner.shards, policy, batches, weighted_loss, no_tokens(policy.device))
    return sum(losses)


def _step(learner: Learner, config: PPOConfig, totals: Sums, train_policy: bool) -> None:
    """Sum the gradients over processes (FSDP already has), clip them, step both optimizers and update the average."""
    models = [("value", learner.value_weights, learner.value_optimizer)]
    if train_policy:
        models.insert(0, ("policy", learner.policy_weights, learner.policy_optimizer))
    if learner.shards is None:
        sum_gradients([weight for _, weights, _ in models for weight in weights.values()])
    for name, weights, _ in models:
        norm = float(whole_tensor(nn.utils.clip_grad_norm_(weights.values(), config.max_grad_norm)))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the norm of the {name} gradient is {norm}; lower {name}_learning_rate, and look at the scores of "
                "this step"
            )
        totals[f"{name}_grad_norm"] += norm
    for _, _, optimizer in models:
        optimizer.step()
    _zero_gradients(learner)
    totals["optimizer_steps"] += 1
    if train_policy and learner.average is not None:
        assert config.ema_decay is not None
        with torch.no_grad():
            for mean, weight in zip(learner.average, learner.policy_weights.values(), strict=True):
                mean.lerp_(weight, 1 - config.ema_decay)


def _zero_gradients(learner: Learner) -> None:
    learner.policy_optimizer.zero_grad(set_to_none=True)
    learner.value_optimizer.zero_grad(set_to_none=True)


def _means(totals: Sums) -> dict[str, float]:
    """Divide sums over tokens by the number of tokens, norms and the ptx loss by the number of optimizer steps."""
    tokens, steps = max(1, totals["tokens"]), max(1, totals["optimizer_steps"])
    by_token = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "value_clip_fraction")
    by_step = ("policy_grad_norm", "value_grad_norm", "ptx_loss")
    means = {name: totals[name] / tokens for name in by_token if name in totals}
    means |= {name: totals[name] / steps for name in by_step if name in totals}
    kept = ("sampling_mismatch", "optimizer_steps", "update_stopped")
    return means | {name: float(totals[name]) for name in kept if name in totals}
