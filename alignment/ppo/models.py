"""The models of a run and their memory layout: what is trained, frozen and shared.

- `separate`: policy, value model, reference and reward models share no weights.
- `shared_trunk`: the value is one linear layer on the policy's trunk, so that one forward yields log-probabilities and
  values, and both losses train the trunk.
- `lora`: one frozen base, which is the reference; policy and value model are adapters over it, and so is each reward
  model that is an adapter of the same base. Only adapters and the value's head are trained.

Whatever the layout, all models are plain `PreTrainedModel`s that the rest of the trainer uses in the same way.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from alignment.errors import ConfigError
from alignment.models.ensembles import Ensemble
from alignment.models.likelihood import without_likelihood
from alignment.models.lora import (
    add_adapter,
    has_adapter,
    merged,
    over_base,
    rebased,
)
from alignment.models.recomputation import recompute_layers
from alignment.models.reward_adapters import scalar_adapter_over
from alignment.models.scalar import scalar_config, scalar_head, scalar_model_from, scalar_model_over, set_normalisation
from alignment.ppo.config import PPOConfig
from alignment.ppo.memory import check_bfloat16, has_half_weights
from alignment.ppo.trunk import shares_trunk
from alignment.rewards.components import Component, ModelReward, named_models


@dataclass(frozen=True)
class Models:
    """The models of a run: copies of the trained models, and the frozen models."""

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
    """The models in the configured layout; the arguments' weights are not changed."""
    if config.layout != "separate" and value_model is not None:
        raise ConfigError(
            f"layout {config.layout} creates its own value model: omit value_model, or set layout to separate"
        )
    if config.bfloat16:
        check_bfloat16(policy)
    if has_adapter(policy):
        raise ConfigError("the policy has a LoRA adapter: pass alignment.models.lora.merged(policy)")
    if config.layout == "lora":
        models = _over_one_base(config, policy, reference, components)
    else:
        models = _whole_models(config, policy, value_model, reference, components)
    models.reference.eval()
    if config.gradient_checkpointing:
        recompute_layers(models.policy)
        if not shares_trunk(models.policy, models.value_model):
            recompute_layers(models.value_model)
    return models


def _whole_models(
    config: PPOConfig,
    policy: PreTrainedModel,
    value_model: PreTrainedModel | None,
    reference: PreTrainedModel | None,
    components: Sequence[Component],
) -> Models:
    """Copies of the models to train, in float32 or better: half precision rounds small updates away."""
    trained = copy.deepcopy(policy)
    if has_half_weights(trained):
        trained.float()
        if reference is None and not config.bfloat16:
            reference = copy.deepcopy(trained)  # in half precision, KL would not start at 0
    if config.layout == "shared_trunk":
        value_model = scalar_model_over(trained)
        _take_head(value_model, reward_models(components))
    else:
        value_model = _own_value_model(policy, value_model, reward_models(components))
        if has_half_weights(value_model):
            value_model.float()
    return Models(trained, value_model, policy if reference is None else reference, list(components))


def reward_models(components: Sequence[Component]) -> list[PreTrainedModel]:
    """All models of the rewards in order, with every member of an ensemble."""
    return [model for _, model in named_models(components)]


def _own_value_model(
    policy: PreTrainedModel, value_model: PreTrainedModel | None, rewards: Sequence[PreTrainedModel]
) -> PreTrainedModel:
    """A copy of `value_model`, else of the first reward model, else the policy's trunk with a zero head."""
    if value_model is None and not rewards:
        return scalar_model_from(policy)
    start = rewards[0] if value_model is None else value_model
    scalar_head(start)
    return without_likelihood(copy.deepcopy(merged(start) if has_adapter(start) else start))


def _over_one_base(
    config: PPOConfig, policy: PreTrainedModel, reference: PreTrainedModel | None, components: Sequence[Component]
) -> Models:
    """Adapters over the policy's weights; the value model starts as the first reward adapter of this base, if any."""
    if reference is not None:
        raise ConfigError("in layout lora the reference is the policy without its adapter: omit reference")
    scalar_config(policy)  # checked before the policy's own adapter, for which some architectures are refused too
    base = over_base(policy)
    over = [_component_over(base, component) for component in components]
    options = (config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
    trained = over_base(base)
    add_adapter(trained, *options)
    changed = [new for new, old in zip(over, components, strict=True) if new is not old]
    adapters = [model for model in reward_models(changed) if has_adapter(model)]
    if adapters:
        value_model = without_likelihood(over_base(adapters[0]))
    else:
        value_model = scalar_adapter_over(base, *options)
        _take_head(value_model, reward_models(components))
    return Models(trained, value_model, base, over)


def _component_over(base: PreTrainedModel, component: Component) -> Component:
    """The component with reward models that are adapters of the base moved onto it; others are unchanged."""
    if not isinstance(component, ModelReward):
        return component
    models = [_over(base, model) for model in component.models]
    if all(new is old for new, old in zip(models, component.models, strict=True)):
        return component
    reward = component.model
    return replace(component, model=replace(reward, models=models) if isinstance(reward, Ensemble) else models[0])


def _over(base: PreTrainedModel, reward: PreTrainedModel) -> PreTrainedModel:
    """The reward model over the policy's weights if it is an adapter of the same base, else the model itself."""
    return (rebased(reward, base) if has_adapter(reward) else None) or reward


def _take_head(value_model: PreTrainedModel, rewards: Sequence[PreTrainedModel]) -> None:
    """Copy head and scale of the first reward model with the same architecture; without one the head stays 0."""
    for reward in rewards:
        head, reward_head = scalar_head(value_model), scalar_head(reward)
        if _architecture(reward) == _architecture(value_model) and (head.bias is None) == (reward_head.bias is None):
            head.load_state_dict(reward_head.state_dict())
            scale, bias = getattr(reward.config, "reward_scale", 1.0), getattr(reward.config, "reward_bias", 0.0)
            set_normalisation(value_model, bias, scale)
            return


def _architecture(model: PreTrainedModel) -> tuple[object, ...]:
    return (model.config.model_type, model.config.num_hidden_layers, scalar_head(model).in_features)
