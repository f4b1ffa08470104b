"""The models of a run and how they lie in memory: what is trained, what is frozen, what is shared.

- `separate`: policy, value model, reference and reward models, each by itself.
- `shared_trunk`: the value is one linear layer on the policy's trunk, so that one forward gives log-probabilities and
  values, and both losses move the trunk.

Whatever the layout, all models are plain `PreTrainedModel`s that the rest of the trainer uses in the same way.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.errors import ConfigError
from alignment.logprobs import ScoringBatch, response_logprobs_and_entropy
from alignment.model import scalar_head, scalar_model_from, scalar_model_over, set_normalisation
from alignment.ppo.config import PPOConfig
from alignment.ppo.rewards import Component, ModelReward
from alignment.ppo.rollout import values_at


@dataclass(frozen=True)
class Models:
    """The models of a run: copies of those that are trained, and the frozen ones."""

    policy: PreTrainedModel
    value_model: PreTrainedModel
    reference: PreTrainedModel
    components: list[Component]


def lay_out(
    config: PPOConfig,
    policy: PreTrainedModel,
    value_model: PreTrainedModel | None,
    reference: PreTrainedModel | None,
    components: Sequence[Component],
) -> Models:
    """The models in the layout that was chosen; the arguments' weights are left alone."""
    if config.layout != "separate" and value_model is not None:
        raise ConfigError(
            f"layout {config.layout} makes its own value model: leave value_model out, or set layout to separate"
        )
    reference = policy if reference is None else reference
    reference.eval()
    rewards = [component.model for component in components if isinstance(component, ModelReward)]
    trained = copy.deepcopy(policy)
    if config.layout == "shared_trunk":
        value_model = scalar_model_over(trained)
        _take_head(value_model, rewards)
    elif value_model is None:
        value_model = copy.deepcopy(rewards[0]) if rewards else scalar_model_from(policy)
    else:
        scalar_head(value_model)
        value_model = copy.deepcopy(value_model)
    return Models(trained, value_model, reference, list(components))


def _take_head(value_model: PreTrainedModel, rewards: Sequence[PreTrainedModel]) -> None:
    """Start with the head and scale of the first reward model that was made from the same architecture, else at 0."""
    for reward in rewards:
        head, given = scalar_head(value_model), scalar_head(reward)
        if _architecture(reward) == _architecture(value_model) and (head.bias is None) == (given.bias is None):
            head.load_state_dict(given.state_dict())
            scale, bias = getattr(reward.config, "reward_scale", 1.0), getattr(reward.config, "reward_bias", 0.0)
            set_normalisation(value_model, bias, scale)
            return


def _architecture(model: PreTrainedModel) -> tuple[object, ...]:
    return (model.config.model_type, model.config.num_hidden_layers, scalar_head(model).in_features)


def trained_weights(
    policy: PreTrainedModel, value_model: PreTrainedModel
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The weights that are learnt, by name: those of the policy, and those of the value model that it has alone."""
    policy_weights = dict(policy.named_parameters())
    shared = {id(weight) for weight in policy_weights.values()}
    value_weights = {name: w for name, w in value_model.named_parameters() if id(w) not in shared}
    return policy_weights, value_weights


def shares_trunk(policy: PreTrainedModel, value_model: PreTrainedModel) -> bool:
    """Whether the value model's head sits on the policy's own trunk."""
    return value_model.base_model is policy.base_model


def policy_and_values(
    policy: PreTrainedModel, value_model: PreTrainedModel, batch: ScoringBatch, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(token), entropy and V before the token from one forward of the trunk they share. Shapes: (n,) each."""
    hidden: list[Tensor] = []
    hook = policy.base_model.register_forward_hook(
        lambda _, __, output: hidden.append(output.last_hidden_state[batch.row, batch.position])
    )
    try:
        logprobs, entropy = response_logprobs_and_entropy(policy, batch, temperature)
    finally:
        hook.remove()
    return logprobs, entropy, values_at(value_model, hidden[0])


def values_with_still_trunk(value_model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """V with gradients to the head alone, and no graph of the trunk. Shape: (n,)."""
    with torch.no_grad():
        hidden = value_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return values_at(value_model, hidden[batch.row, batch.position])
