"""Options of PPO. A step is one rollout of `batch_size` episodes and the update made from it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignment.config.base import Config, Count, Natural, NonNegative, Positive, Share

# Options that act in one layout alone; elsewhere they keep their default.
LAYOUT_OF = {"value_coef": "shared_trunk", "lora_rank": "lora", "lora_alpha": "lora", "lora_targets": "lora"}


class PPOConfig(Config):
    """PPO-RLHF (Ouyang 2022)."""

    steps: Count = Field(60, description="rollouts, each with its update")
    seed: Natural = Field(0, description="of sampling and shuffling; the pipeline puts the recipe's seed here")

    # which models there are, and how they lie in memory
    layout: Literal["separate", "shared_trunk", "lora"] = Field(
        "separate",
        description="shared_trunk: the value is a head on the policy's trunk; lora: policy and value are adapters over "
        "one frozen base, which is the reference, and so is a reward model that is an adapter of it",
    )
    value_coef: Positive = Field(0.1, description="shared_trunk: weight of the value loss, which moves the trunk too")
    lora_rank: Count = Field(16, description="lora: rank of the adapters")
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
    max_new_tokens: Count = Field(48, description="longest response")
    temperature: Positive = Field(1.0, description="of sampling, and of every log-probability")
    generation_batch_size: Count = Field(256, description="responses generated at a time")

    # score
    missing_eos: Literal["subtract", "replace"] = Field(
        "subtract", description="a response without EOS: take the penalty off its score, or make -penalty its score"
    )
    missing_eos_penalty: NonNegative = Field(1.0, description="in units of the score")
    length_penalty: NonNegative = Field(0.0, description="taken off the score for each response token")
    score_clip: Positive | None = Field(None, description="keep scores within ± this")

    # reward: score at the last token, -kl_coef · KL at every token
    kl_coef: NonNegative = Field(
        0.05, description="what a nat of distance to SFT costs; the first value where kl_target adapts it"
    )
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="k1: log-ratio; k3: ratio less 1 less log-ratio, never negative"
    )
    kl_target: Positive | None = Field(None, description="nats a response; adapts kl_coef, which is fixed without it")
    kl_gain: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="K_β of the adaptive controller")
    whiten_rewards: bool = Field(False, description="scale rewards to standard deviation 1 over the rollout")

    # advantages
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="discount a token")
    gae_lambda: Share = Field(0.95, description="0: TD error; 1: return less value")
    whiten_advantages: bool = Field(True, description="mean 0 and standard deviation 1 over the rollout")

    # update
    epochs: Count = Field(2, description="passes over a rollout")
    minibatch_size: Count = Field(32, description="episodes an optimizer step")
    micro_batch_tokens: Count = Field(
        1024, description="padded tokens in one forward; bounds memory and padding, not the result; more suits a GPU"
    )
    clip_range: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="probability ratios beyond 1 ± this give no gradient"
    )
    value_clip_range: Positive | None = Field(0.2, description="null: value loss without clipping")
    entropy_coef: NonNegative = Field(0.0, description="weight of the entropy bonus")
    max_grad_norm: Positive = Field(1.0, description="longer gradients are cut to this norm")
    update_target_kl: Positive | None = Field(None, description="end an update when π moved this far from π_old")
    policy_learning_rate: Positive = Field(1e-4, description="of AdamW, for the policy")
    value_learning_rate: Positive = Field(3e-4, description="of AdamW, for the value model")
    warmup_steps: Natural = Field(0, description="steps of rising policy learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the policy's learning rate over the steps"
    )
    min_learning_rate_share: Share = Field(
        0.1, description="last learning rate of linear and cosine, as a share of the first"
    )
    weight_decay: NonNegative = Field(0.0, description="of AdamW")
    value_warmup_steps: Natural = Field(0, description="first steps that train the value model alone")

    # pretraining gradients (PPO-ptx) and averaging
    ptx_coef: NonNegative = Field(0.0, description="weight of next-token prediction on the corpus; 0: none")
    ptx_batch_size: Count = Field(16, description="sequences beside each minibatch")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="publish an average of the weights over optimizer steps instead of the last ones"
    )

    # stop and save
    early_stop_kl: Positive | None = Field(None, description="nats a response to the reference; above it, the run ends")
    early_stop_patience: Count = Field(2, description="steps in a row above early_stop_kl")
    snapshot_every_steps: Count = Field(20, description="steps between policies kept for the curve and for selection")
    checkpoint_every_steps: Count = Field(10, description="steps between states from which a killed run goes on")

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
