"""The reward of a stage: the reward model or ensemble of the stage `reward`, and the recipe's rules."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from alignment.models.scalar import load_rewards
from alignment.rewards.components import Component, ModelReward, RuleReward
from alignment.rules import RULES, Rule
from alignment.rules.form import FormatLimits
from alignment.rules.options import AlignOptions, RuleOption
from alignment.rules.safety import SafetyLists

REWARD_MODEL = "model"


def rule_rewards(align: AlignOptions) -> list[RuleReward]:
    """The rules of a recipe, each with its weight."""
    safety, limits = align.safety or SafetyLists(), align.format or FormatLimits()
    return [rule_reward(option, RULES[option.name], safety, limits) for option in align.rules or ()]


def rule_reward(option: RuleOption, rule: Rule, safety: SafetyLists, limits: FormatLimits) -> RuleReward:
    """A rule as a reward function of batches."""

    def score(prompts: list[str], responses: list[str]) -> list[float]:
        return [rule(*pair, safety, limits) for pair in zip(prompts, responses, strict=True)]

    return RuleReward(option.name, option.weight, score)


def reward_parts(
    reward: Path, rules: Sequence[RuleReward], load: Callable[[Path], PreTrainedModel] | None = None
) -> list[Component]:
    """The reward model or ensemble (weight 1), each model loaded by `load` (see `load_rewards`), and the rules."""
    return [ModelReward(REWARD_MODEL, 1.0, load_rewards(reward, load)), *rules]
