"""The section `align` of a recipe, built from the registry of methods."""

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
    """The alignment method and its options. The options of other methods are ignored."""

    method: str = Field("ppo", description="method that makes the policy from SFT")
    select: Literal["last", "heldout_reward"] = Field(
        "last",
        description="PPO snapshot that becomes the policy: the last, or the best by a reward model of held-out labels",
    )
    select_prompts: Count = Field(200, description="training prompts that each snapshot answers for the selection")
    ptx_min_reward: float | None = Field(
        None,
        description="PPO-ptx drops conversations of the corpus with an answer that the reward model scores "
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
            raise ValueError(f"rule '{twice[0]}' is listed {names.count(twice[0])} times: list it once")
        if self.select != "last" and not self.chosen.keeps_snapshots:
            raise ValueError(f"method '{self.method}' keeps no snapshots to select from: set select to 'last'")
        return self

    @property
    def chosen(self) -> Method[Any]:
        """The method that the recipe names."""
        return next(method for method in METHODS if method.name == self.method)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The options that are set but ignored by the chosen method."""
        rules = ["rules"] if self.rules and not self.chosen.follows_reward else []
        text = ["ptx_min_reward"] if self.ptx_min_reward is not None and not self.chosen.reads_corpus else []
        return (*rules, *text)

    def warnings(self) -> list[str]:
        """A sentence for each option that is set and ignored."""
        return [f"align.{option} is ignored: align.method is {self.method}" for option in self.ignored]

    def options(self) -> AlignOptions | None:
        """The options that the chosen method gets beside its own; None if it uses no reward."""
        if not self.chosen.follows_reward:
            return None
        return AlignOptions(
            rules=self.rules or None,
            safety=self.safety if self.rules else None,
            format=self.format if self.rules else None,
            ptx_min_reward=self.ptx_min_reward if self.chosen.reads_corpus else None,
            select_prompts=self.select_prompts if self.select == "heldout_reward" else None,
        )


for _method in METHODS:
    _names = [method.name for method in METHODS]
    assert _names.count(_method.name) == 1, f"two methods are called {_method.name}"
    assert _method.name not in AlignSection.model_fields, f"align.{_method.name} is an option of all methods"
    assert _method.section in (_method.name, f"{SECTION}{_method.name}"), f"{_method.section}: name it align.NAME"

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
