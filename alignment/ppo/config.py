"""Options of PPO. A step is one rollout of `batch_size` episodes and the update made from it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignment.config import Config, Count, Natural, Positive, Share

NonNegative = Annotated[float, Field(ge=0)]
# Options that act in one layout alone; elsewhere they keep their default.
LAYOUT_OF = {"value_coef": "shared_trunk", "lora_rank": "lora", "lora_alpha": "lora", "lora_targets": "lora"}


class PPOConfig(Config):
    """PPO-RLHF (Ouyang 2022)."""

    steps: Count = 60
    seed: Natural = 0

    # which models there are, and how they lie in memory
    layout: Literal["separate", "shared_trunk", "lora"] = Field(
        "separate",
        description="shared_trunk: the value is a head on the policy's trunk; lora: policy and value are adapters over "
        "one frozen base, which is the reference, and so is a reward model that is an adapter of it",
    )
    value_coef: Positive = Field(0.1, description="shared_trunk: weight of the value loss, which moves the trunk too")
    lora_rank: Count = 16
    lora_alpha: Count = Field(32, description="an adapter adds (lora_alpha / lora_rank) · B A")
    lora_targets: tuple[str, ...] | None = Field(None, description="names of layers; null: all linear ones")

    # memory and speed, with the same formulas
    bfloat16: bool = Field(
        False, description="forwards in bfloat16; trained weights, optimizers, log-probabilities and losses in float32"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute layers in the backward pass: memory of one layer at a time for a forward more"
    )

    # rollout
    batch_size: Count = Field(128, description="episodes a step")
    max_new_tokens: Count = 48
    temperature: Positive = Field(1.0, description="of sampling, and of every log-probability")
    generation_batch_size: Count = 256

    # score
    missing_eos: Literal["subtract", "replace"] = Field(
        "subtract", description="a response without EOS: take the penalty off its score, or make -penalty its score"
    )
    missing_eos_penalty: NonNegative = 1.0
    length_penalty: NonNegative = Field(0.0, description="taken off the score for each response token")
    score_clip: Positive | None = Field(None, description="keep scores within ± this")

    # reward: score at the last token, -kl_coef · KL at every token
    kl_coef: NonNegative = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_target: Positive | None = Field(None, description="nats a response; adapts kl_coef, which is fixed without it")
    kl_gain: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="K_β of the adaptive controller")
    whiten_rewards: bool = False

    # advantages
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Share = 0.95
    whiten_advantages: bool = True

    # update
    epochs: Count = 2
    minibatch_size: Count = Field(32, description="episodes an optimizer step")
    micro_batch_tokens: Count = Field(
        1024, description="padded tokens in one forward; bounds memory and padding, not the result; more suits a GPU"
    )
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip_range: Positive | None = Field(0.2, description="null: value loss without clipping")
    entropy_coef: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    update_target_kl: Positive | None = Field(None, description="end an update when π moved this far from π_old")
    policy_learning_rate: Positive = 1e-4
    value_learning_rate: Positive = 3e-4
    warmup_steps: Natural = Field(0, description="steps of rising policy learning rate")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_learning_rate_share: Share = 0.1
    weight_decay: NonNegative = 0.0
    value_warmup_steps: Natural = Field(0, description="first steps that train the value model alone")

    # pretraining gradients (PPO-ptx) and averaging
    ptx_coef: NonNegative = 0.0
    ptx_batch_size: Count = Field(16, description="sequences beside each minibatch")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="publish an average of the weights over optimizer steps instead of the last ones"
    )

    # stop and save
    early_stop_kl: Positive | None = Field(None, description="nats a response to the reference; above it, the run ends")
    early_stop_patience: Count = Field(2, description="steps in a row above early_stop_kl")
    snapshot_every_steps: Count = 20
    checkpoint_every_steps: Count = 10

    @model_validator(mode="after")
    def _possible(self) -> "PPOConfig":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> list[str]:
        problems = []
        if self.batch_size % self.minibatch_size:
            problems.append(
                f"batch_size {self.batch_size} is not a multiple of minibatch_size {self.minibatch_size}: "
                f"set minibatch_size to a divisor of {self.batch_size}"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append("kl_target multiplies kl_coef, and 0 stays 0: set kl_coef above 0, or kl_target to null")
        if self.kl_target is not None and self.early_stop_kl is not None and self.early_stop_kl <= self.kl_target:
            problems.append(
                f"early_stop_kl {self.early_stop_kl} would end the run on the way to kl_target {self.kl_target}: "
                "set early_stop_kl well above kl_target"
            )
        if self.value_warmup_steps >= self.steps:
            problems.append(
                f"value_warmup_steps {self.value_warmup_steps} leaves none of the {self.steps} steps for the policy: "
                "lower it, or raise steps"
            )
        if self.value_warmup_steps + self.warmup_steps > self.steps:
            problems.append(
                f"warmup_steps {self.warmup_steps} does not fit in the {self.steps - self.value_warmup_steps} steps "
                "that train the policy: lower it, or raise steps"
            )
        if self.score_clip is not None and self.missing_eos == "replace" and self.missing_eos_penalty > self.score_clip:
            problems.append(
                f"score_clip {self.score_clip} would cut missing_eos_penalty {self.missing_eos_penalty}: raise "
                "score_clip, or lower the penalty"
            )
        return problems + self._layout_problems()

    def _layout_problems(self) -> list[str]:
        """Options of another layout than the one chosen, which would be ignored."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return [
            f"{name} {getattr(self, name)} does nothing in layout {self.layout}: "
            f"leave it out, or set layout to {layout}"
            for name, layout in LAYOUT_OF.items()
            if layout != self.layout and getattr(self, name) != defaults[name]
        ]
