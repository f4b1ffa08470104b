"""Models with shared weights learn what separate ones would: float64, one minibatch, computed by hand."""

import copy
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from alignment.models.logprobs import response_logprobs_and_entropy
from alignment.models.lora import adapter_weights, add_adapter, merged, over_base
from alignment.models.reward_adapters import scalar_adapter_over
from alignment.models.scalar import scalar_head, scalar_model_over
from alignment.ppo import update, values
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import micro_batches
from alignment.ppo.values import response_values
from tests.formulas.models import tiny_llama, tiny_value_model
from tests.formulas.test_accumulation import _rollout


def _config(**options) -> PPOConfig:
    return PPOConfig(
        **{"batch_size": 8, "minibatch_size": 8, "micro_batch_tokens": 30, "entropy_coef": 0.1, "epochs": 1, **options}
    )


def _value_over(policy: PreTrainedModel) -> PreTrainedModel:
    value_model = scalar_model_over(policy)
    nn.init.normal_(scalar_head(value_model).weight, generator=torch.Generator().manual_seed(1))
    value_model.config.reward_bias, value_model.config.reward_scale = 0.5, 2.0
    return value_model


def _gradients(m: ModuleType, shared: bool, config: PPOConfig, train_policy: bool = True):
    """Gradients by name of the policy and of the value model; both start at the same weights in either layout."""
    policy = tiny_llama(vocab_size=5)
    value_model = _value_over(policy)
    if not shared:
        separate = tiny_value_model(policy)
        separate.config = value_model.config
        value_model = separate
    learner = m.Learner.of(policy, value_model, config)
    m.accumulate_gradients(learner, _rollout(), range(8), config, train_policy)
    return [
        {name: torch.zeros_like(weight) if weight.grad is None else weight.grad for name, weight in weights.items()}
        for weights in (learner.policy_weights, learner.value_weights)
    ]


def check_shared_trunk_gradient(m: ModuleType) -> None:
    """∂L/∂trunk = ∂L_policy/∂trunk + c ∂L_value/∂trunk, of two separate models with the same weights."""
    of_policy, of_value = _gradients(m, False, _config())
    shared, head = _gradients(m, True, _config(layout="shared_trunk", value_coef=0.3))
    assert list(head) == ["score.weight"] and len(shared) == len(of_policy) > 15
    torch.testing.assert_close(head["score.weight"], 0.3 * of_value["score.weight"], rtol=1e-9, atol=1e-12)
    for name, gradient in shared.items():
        expected = of_policy[name] + 0.3 * of_value.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert all(float(of_value[name].abs().max()) > 1e-4 for name in of_value)


def check_one_pass(m: ModuleType) -> None:
    """One forward says what two would, to the bit: all three are the same operations on tensors of the same shapes."""
    policy = tiny_llama(vocab_size=5)
    value_model = _value_over(policy)
    for batch in micro_batches(_rollout().episodes, _config(), torch.device("cpu")):
        logprobs, entropy, values = m.policy_and_values(policy, value_model, batch, 0.7)
        expected = response_logprobs_and_entropy(policy, batch, 0.7)
        torch.testing.assert_close((logprobs, entropy), expected, rtol=0, atol=0)
        torch.testing.assert_close(values, response_values(value_model, batch), rtol=0, atol=0)


def test_shared_trunk_gradient() -> None:
    check_shared_trunk_gradient(update)


def test_one_pass() -> None:
    check_one_pass(values)


def test_a_warming_value_leaves_the_shared_trunk_alone() -> None:
    shared, head = _gradients(update, True, _config(layout="shared_trunk"), train_policy=False)
    assert all(not gradient.any() for gradient in shared.values()) and head["score.weight"].any()


def test_lora_gradient_is_that_of_the_merged_weight() -> None:
    """With W' = W + s B A:   ∂L/∂B = s (∂L/∂W') Aᵀ and ∂L/∂A = s Bᵀ (∂L/∂W'), for both models.

    The gradients of the merged weights come from separate plain models.
    """
    config = _config(layout="lora", lora_rank=3, lora_alpha=6)
    base = tiny_llama(vocab_size=5)
    policy = over_base(base)
    add_adapter(policy, 3, 6)
    value_model = scalar_adapter_over(base, 3, 6)
    for model in (policy, value_model):
        for weight in adapter_weights(model).values():
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(2))
    plain = [copy.deepcopy(merged(model)) for model in (policy, value_model)]
    learner = update.Learner.of(policy, value_model, config)
    sums = update.accumulate_gradients(learner, _rollout(), range(8), config)
    separate = update.Learner.of(plain[0], plain[1], _config())
    expected_sums = update.accumulate_gradients(separate, _rollout(), range(8), _config())
    for name in ("policy_loss", "value_loss", "entropy"):
        assert sums[name] == pytest.approx(expected_sums[name], rel=1e-9)
    for adapted, whole in ((policy, plain[0]), (value_model, plain[1])):
        weights = dict(whole.named_parameters())
        found = adapter_weights(adapted)
        for name in [name for name in found if ".lora_A." in name]:
            a, b = found[name], found[name.replace(".lora_A.", ".lora_B.")]
            gradient = weights[name.replace(".lora_A.default", "")].grad
            torch.testing.assert_close(b.grad, 2.0 * gradient @ a.T, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(a.grad, 2.0 * b.T @ gradient, rtol=1e-9, atol=1e-12)
            assert float(a.grad.abs().max()) > 1e-5
    head = adapter_weights(value_model)["score.weight"].grad
    torch.testing.assert_close(head, dict(plain[1].named_parameters())["score.weight"].grad, rtol=1e-9, atol=1e-12)
    assert all(weight.grad is None for weight in base.parameters())
