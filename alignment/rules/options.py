"""Options shared by the methods that use the reward model: rule rewards, and options of PPO outside its own section."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from alignment.config.base import Config, Count, Positive
from alignment.rules import RULES
from alignment.rules.form import FormatLimits
from alignment.rules.safety import SafetyLists

if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[tuple(RULES)]  # forms and error messages list the names; type checkers know no such literal


class RuleOption(Config):
    """A rule reward beside the reward model; see `alignment.rules`."""

    name: RuleName = Field(description="name of the rule")
    weight: Positive = Field(1.0, description="weight, in standard deviations of the reward model's score")


class AlignOptions(Config):
    """The options that a method gets beside its own; None for those that the recipe does not set.

    `rules` are rule rewards beside the reward model, `safety` and `format` their options. `select_prompts` is the
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
