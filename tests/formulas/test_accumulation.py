"""Micro-batches and processes do not change the result: the mean is over all response tokens of a minibatch."""

from types import ModuleType
from unittest import mock

import pytest
import torch

from alignment.ppo import update
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import Episodes, Rollout
from tests.formulas.models import tiny_llama, tiny_value_model


def _rollout() -> Rollout:
    generator = torch.Generator().manual_seed(0)
    lengths, prompts = [1, 7, 3, 5, 2, 6, 4, 7], [2, 1, 3, 2, 4, 1, 2, 3]
    sequences = [
        torch.randint(0, 5, (p + n,), generator=generator).tolist() for n, p in zip(lengths, prompts, strict=True)
    ]
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(-1)
    old, values, a, returns = torch.randn(4, 8, 7, dtype=torch.float64, generator=generator)
    episodes = Episodes(sequences, prompts, mask, old - 2, old - 2, torch.ones(8, dtype=torch.bool))
    scores = torch.zeros(8, dtype=torch.float64)
    weights = torch.rand(8, 7, dtype=torch.float64, generator=generator) + 0.5
    return Rollout(episodes, {}, scores, scores, old, values, a, returns, weights, 0.0)


def _config(micro_batch_tokens: int) -> PPOConfig:
    return PPOConfig(
        batch_size=8,
        minibatch_size=8,
        micro_batch_tokens=micro_batch_tokens,
        entropy_coef=0.1,
        ptx_coef=0.5,
        ptx_batch_size=4,
        epochs=1,
        max_grad_norm=1e9,
    )


def _gradients(m: ModuleType, micro_batch_tokens: int) -> list[torch.Tensor]:
    policy = tiny_llama(vocab_size=5)
    config = _config(micro_batch_tokens)
    learner = m.Learner.of(policy, tiny_value_model(policy), config)
    m.accumulate_gradients(learner, _rollout(), range(8), config)
    m.accumulate_ptx_gradients(learner, [[1, 2, 3], [3, 2, 1, 4, 0, 1], [2, 2], [4, 3, 1, 1]], config, 0, 0)
    return [
        parameter.grad
        for model in (learner.policy, learner.value_model)
        for parameter in model.parameters()
        if parameter.grad is not None
    ]


def check_accumulation(m: ModuleType) -> None:
    """8 episodes at once and 8 times one: the same gradient of both models, and it is not 0."""
    whole, single = _gradients(m, 10_000), _gradients(m, 1)
    assert len(whole) > 20 and max(float(gradient.abs().max()) for gradient in whole) > 1e-3
    torch.testing.assert_close(whole, single, rtol=1e-9, atol=1e-12)


def check_shares(m: ModuleType) -> None:
    """The gradients and sums of 1, 2 and 11 processes (then three have nothing to do), added up, are the same."""
    whole = _of_processes(m, 1)
    for count in (2, 11):
        torch.testing.assert_close(_of_processes(m, count), whole, rtol=1e-9, atol=1e-12)


def _of_processes(m: ModuleType, count: int) -> tuple[list[torch.Tensor], dict[str, float]]:
    """One learner plays all processes in turn: its gradients add up by themselves."""
    policy, config = tiny_llama(vocab_size=5), _config(10_000)
    learner, shares = m.Learner.of(policy, tiny_value_model(policy), config), []
    for number in range(count):
        with mock.patch.object(m, "share_of", lambda rows, first=number: list(rows[first::count])):
            shares.append(m.accumulate_gradients(learner, _rollout(), range(8), config))
            m.accumulate_ptx_gradients(learner, [[1, 2, 3], [3, 2, 1, 4, 0, 1], [2, 2], [4, 3, 1, 1]], config, 0, 0)
    weights = [weight for model in (learner.policy, learner.value_model) for weight in model.parameters()]
    return [weight.grad for weight in weights if weight.grad is not None], dict(m._sums_over_processes(shares))


def check_minibatch_mean(m: ModuleType) -> None:
    """The reported losses are means over tokens, as the formula applied to one padded batch has them."""
    policy = tiny_llama(vocab_size=5)
    config, rollout = _config(1), _rollout()
    learner = m.Learner.of(policy, tiny_value_model(policy), config)
    sums = m.accumulate_gradients(learner, rollout, range(8), config)
    total = surrogates = values = 0.0
    for i, (sequence, prompt) in enumerate(
        zip(rollout.episodes.sequences, rollout.episodes.prompt_lengths, strict=True)
    ):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logs = policy(ids).logits[0].log_softmax(-1)
            v = learner.value_model.score(learner.value_model.model(ids).last_hidden_state)[0, :, 0]
        for t in range(len(sequence) - prompt):
            ratio = (logs[prompt + t - 1, sequence[prompt + t]] - rollout.episodes.logprobs[i, t]).exp().item()
            a, old_v, target = (x[i, t].item() for x in (rollout.advantages, rollout.values, rollout.returns))
            surrogates -= rollout.weights[i, t].item() * min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            new_v = v[prompt + t - 1].item()
            near_v = min(max(new_v, old_v - 0.2), old_v + 0.2)
            values += 0.5 * max((new_v - target) ** 2, (near_v - target) ** 2)
            total += 1
    assert sums["tokens"] == total
    assert sums["policy_loss"] == pytest.approx(surrogates, rel=1e-9)
    assert sums["value_loss"] == pytest.approx(values, rel=1e-9)


@pytest.mark.parametrize("check", [check_accumulation, check_shares, check_minibatch_mean])
def test_update(check) -> None:
    check(update)
