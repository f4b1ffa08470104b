"""Options that the methods which follow the reward model share: rule rewards, and what PPO alone adds to its own."""

from typing import Literal

from pydantic import Field, model_validator

from alignment.config.base import Config, Count, Natural, Positive
from alignment.rewards.safety import SafetyLists

RuleName = Literal["refusal", "format", "arithmetic", "safety"]


class RuleOption(Config):
    """A rule reward beside the reward model; see `alignment.rewards.rules` for what each of them counts."""

    name: RuleName = Field(description="which rule")
    weight: Positive = Field(1.0, description="in standard deviations of the reward model's score")


class FormatLimits(Config):
    """What the rule `format` takes for a well-made length."""

    min_words: Natural = Field(1, description="fewest words of a well-made response")
    max_words: Count = Field(60, description="most words of a well-made response")

    @model_validator(mode="after")
    def _ordered(self) -> "FormatLimits":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}: lower it")
        return self


class AlignOptions(Config):
    """What a method is given beside its own options; None for what the recipe does not ask for.

    `rules` are rule rewards beside the reward model, `safety` and `format` what they read. `select_prompts` is the
    number of prompts by which a snapshot is selected. `ptx_min_reward` filters the text of PPO-ptx.
    """

    rules: tuple[RuleOption, ...] | None = None
    safety: SafetyLists | None = None
    format: FormatLimits | None = None
    ptx_min_reward: float | None = None
    select_prompts: Count | None = None

    def in_use(self) -> dict[str, object]:
        """The options that are set, by name."""
        return {name: value for name, value in self if value is not None}
