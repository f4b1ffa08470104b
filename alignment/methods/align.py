"""The section `align` of a recipe, made from the registry of methods."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from alignment.config.base import Config, Count
from alignment.methods import METHODS
from alignment.rules.form import FormatLimits
from alignment.rules.options import AlignOptions, RuleOption
from alignment.rules.safety import SafetyLists
from alignment.stage import Method

SECTION = "align."


class AlignSection(Config):
    """What makes the policy. The options of the methods that are not chosen are ignored."""

    method: str = Field("ppo", description="ppo, or what stands in its place")
    select: Literal["last", "heldout_reward"] = Field(
        "last", description="which snapshot of PPO is the policy: the last, or by a reward model from held-out labels"
    )
    select_prompts: Count = Field(200, description="training prompts that each snapshot answers to be chosen")
    ptx_min_reward: float | None = Field(
        None,
        description="PPO-ptx leaves out conversations of the corpus with an answer that the reward model scores "
        "lower; 0 is the average demonstration",
    )
    rules: tuple[RuleOption, ...] = Field((), description="rule rewards, added to the reward model's score")
    safety: SafetyLists = SafetyLists()
    format: FormatLimits = FormatLimits()

    @model_validator(mode="after")
    def _possible(self) -> "AlignSection":
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rule '{twice[0]}' is given {names.count(twice[0])} times: give it once, with its weight")
        if self.select != "last" and not self.chosen.keeps_snapshots:
            raise ValueError(f"method '{self.method}' keeps no snapshots to select from: set select to 'last'")
        return self

    @property
    def chosen(self) -> Method[Any]:
        """The method that the recipe names."""
        return next(method for method in METHODS if method.name == self.method)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What is set and does nothing with the chosen method."""
        rules = ["rules"] if self.rules and not self.chosen.follows_reward else []
        text = ["ptx_min_reward"] if self.ptx_min_reward is not None and not self.chosen.reads_corpus else []
        return (*rules, *text)

    def options(self) -> AlignOptions | None:
        """What the chosen method is given beside its own options; None for one that follows no reward."""
        if not self.chosen.follows_reward:
            return None
        return AlignOptions(
            rules=self.rules or None,
            safety=self.safety if self.rules else None,
            format=self.format if self.rules else None,
            ptx_min_reward=self.ptx_min_reward if self.chosen.reads_corpus else None,
            select_prompts=self.select_prompts if self.select == "heldout_reward" else None,
        )


if TYPE_CHECKING:

    class AlignConfig(AlignSection):
        """`AlignSection`, with the options of each method under its name."""

else:
    AlignConfig = create_model(
        "AlignConfig",
        __base__=AlignSection,
        __doc__=AlignSection.__doc__,
        method=(
            Literal[tuple(method.name for method in METHODS)],
            AlignSection.model_fields["method"],
        ),
        **{
            method.name: (method.config, method.config())
            for method in METHODS
            if method.section == f"{SECTION}{method.name}"
        },
    )
