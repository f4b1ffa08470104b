"""Options of what makes the policy from SFT: the method, its own options, and rules beside the reward model.

PPO's own options are in `alignment.ppo.config`; here are those of its alternatives and what all of them share.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from alignment.config.stages import SFTConfig
from alignment.options import Config, Count, Natural, NonNegative, Positive
from alignment.rules import RULES
from alignment.rules.form import FormatLimits
from alignment.rules.safety import SafetyLists

Method = Literal["ppo", "dpo", "rloo", "best_of_n"]

if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[tuple(RULES)]  # forms and error messages list the names; type checkers know no such literal


class RuleOption(Config):
    """A rule reward beside the reward model; see `alignment.rules` for what each of them counts."""

    name: RuleName = Field(description="which rule")
    weight: Positive = Field(1.0, description="in standard deviations of the reward model's score")


class DPOConfig(Config):
    """Direct preference optimization on the training comparisons (Rafailov et al. 2023)."""

    epochs: Positive = Field(1, description="passes over the comparisons")
    batch_size: Count = Field(32, description="comparisons an optimizer step")
    learning_rate: Positive = Field(1e-4, description="highest, after warm-up")
    beta: Positive = Field(0.1, description="how much a nat of distance to SFT weighs")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of comparisons taken to be the wrong way round"
    )
    max_length_tokens: Count = Field(128, description="longer conversations are left out")
    log_every_steps: Count = Field(5, description="optimizer steps between figures")


class RLOOConfig(Config):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): no value model, k responses a prompt instead."""

    steps: Count = Field(60, description="rollouts, each with its update")
    batch_size: Count = Field(128, description="episodes a step")
    responses_per_prompt: Annotated[int, Field(ge=2)] = Field(
        4, description="k; the others of a prompt are each one's baseline"
    )
    max_new_tokens: Count = Field(48, description="longest response")
    temperature: Positive = Field(1.0, description="of sampling, and of every log-probability")
    kl_coef: NonNegative = Field(0.05, description="what a nat of distance to SFT costs")
    missing_eos_penalty: NonNegative = Field(1.0, description="taken off the score of a response without an end")
    learning_rate: Positive = Field(1e-4, description="highest, after warm-up")
    max_grad_norm: Positive = Field(1.0, description="longer gradients are cut to this norm")
    log_every_steps: Count = Field(1, description="steps between figures")
    checkpoint_every_steps: Count = Field(20, description="steps between states from which a killed run goes on")

    @model_validator(mode="after")
    def _whole_groups(self) -> "RLOOConfig":
        if self.batch_size % self.responses_per_prompt:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of responses_per_prompt {self.responses_per_prompt}: "
                "change one of them"
            )
        return self


class BestOfNConfig(Config):
    """Rejection sampling: SFT's best of n responses a training prompt by the reward, and fine-tuning on those."""

    samples: Annotated[int, Field(ge=2)] = Field(8, description="n, responses a prompt")
    prompts: Natural = Field(0, description="use at most this many training prompts, 0 for all")
    temperature: Positive = Field(1.0, description="of sampling")
    max_new_tokens: Count = Field(48, description="longest response")
    batch_size: Count = Field(128, description="responses sampled at a time")
    finetune: SFTConfig = SFTConfig(epochs=2, learning_rate=1e-4)


class AlignConfig(Config):
    """What makes the policy. The options of the methods that are not chosen count for nothing."""

    method: Method = Field("ppo", description="ppo, or what stands in its place")
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
    dpo: DPOConfig = DPOConfig()
    rloo: RLOOConfig = RLOOConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()

    @model_validator(mode="after")
    def _possible(self) -> "AlignConfig":
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rule '{twice[0]}' is given {names.count(twice[0])} times: give it once, with its weight")
        if self.select != "last" and self.method != "ppo":
            raise ValueError(f"method '{self.method}' keeps no snapshots to select from: set select to 'last'")
        return self

    @property
    def idle(self) -> tuple[str, ...]:
        """What is set and counts for nothing: DPO asks no reward, and PPO alone reads pretraining text."""
        rules = ["rules"] if self.rules and self.method == "dpo" else []
        text = ["ptx_min_reward"] if self.ptx_min_reward is not None and self.method != "ppo" else []
        return (*rules, *text)
