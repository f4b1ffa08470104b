"""What scores responses in the pipeline: the reward model or ensemble of the stage before, and the recipe's rules."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from alignment.config.methods import AlignOptions, FormatLimits
from alignment.models.scalar import load_rewards, load_scalar_model
from alignment.rewards.components import Component, RuleReward, model_component
from alignment.rewards.rules import rule
from alignment.rewards.safety import SafetyLists

REWARD_MODEL = "model"


def rule_rewards(align: AlignOptions) -> list[RuleReward]:
    """The rules that a recipe asks for, each with its weight."""
    safety, limits = align.safety or SafetyLists(), align.format or FormatLimits()
    return [RuleReward(option.name, option.weight, rule(option.name, safety, limits)) for option in align.rules or ()]


def reward_parts(
    reward: Path, rules: Sequence[RuleReward], load: Callable[[Path], PreTrainedModel] = load_scalar_model
) -> list[Component]:
    """The reward model or ensemble (weight 1), each model read by `load`, and the rules beside it."""
    return [model_component(REWARD_MODEL, 1.0, load_rewards(reward, load)), *rules]
