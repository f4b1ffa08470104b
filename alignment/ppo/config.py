"""Options of PPO. A step is a rollout of `batch_size` episodes and the update on it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alignment.config.base import Config, Count, Natural, NonNegative, Positive, Share
from alignment.config.rollout import RolloutConfig

# Options of a single layout; in other layouts they must have their defaults.
LAYOUT_OF = {"value_coef": "shared_trunk", "lora_rank": "lora", "lora_alpha": "lora", "lora_targets": "lora"}


class PPOConfig(Config):
    """PPO-RLHF (Ouyang 2022)."""

    steps: Count = Field(60, description="number of rollouts, each followed by an update")
    seed: Natural = Field(
        0, description="random seed of sampling and shuffling; the pipeline sets it to the recipe's seed"
    )

    # models and their memory layout
    layout: Literal["separate", "shared_trunk", "lora"] = Field(
        "separate",
        description="shared_trunk: the value is a head on the policy's trunk; lora: policy and value are adapters over "
        "one frozen base, which is the reference, and so is a reward model that is an adapter of it",
    )
    value_coef: Positive = Field(0.1, description="shared_trunk: weight of the value loss, which also trains the trunk")
    lora_rank: Count = Field(16, description="lora: rank of the adapters")
    lora_alpha: Count = Field(32, description="an adapter adds (lora_alpha / lora_rank) · B A")
    lora_targets: tuple[str, ...] | None = Field(
        None, description="names of the layers with adapters; null: all linear layers"
    )

    # memory and speed, with the same formulas
    bfloat16: bool = Field(
        False, description="forwards in bfloat16; trained weights, optimizers, log-probabilities and losses in float32"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute layers in the backward pass: less memory, one more forward",
    )

    # rollout
    batch_size: Count = Field(128, description="episodes per step")
    max_new_tokens: Count = Field(48, description="maximum response length in tokens")
    temperature: Positive = Field(1.0, description="temperature of sampling and of all log-probabilities")
    generation_batch_size: Count = Field(256, description="responses generated at a time")
    rollout: RolloutConfig = Field(
        RolloutConfig(),
        exclude_if=lambda options: options == RolloutConfig(),
        description="the engine that samples, and the correction of its difference to the learner",
    )

    # score
    missing_eos: Literal["subtract", "replace"] = Field(
        "subtract",
        description="without EOS: subtract the penalty from the score, or set the score to -penalty",
    )
    missing_eos_penalty: NonNegative = Field(
        1.0, description="penalty of a response without EOS, in units of the score"
    )
    length_penalty: NonNegative = Field(0.0, description="subtracted from the score for each response token")
    score_clip: Positive | None = Field(None, description="clip scores to ± this")

    # reward: score at the last token, -kl_coef · KL at every token
    kl_coef: NonNegative = Field(
        0.05, description="KL penalty coefficient, per nat; the initial value if kl_target adapts it"
    )
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="k1: log-ratio; k3: ratio − 1 − log-ratio, never negative"
    )
    kl_target: Positive | None = Field(
        None, description="target KL in nats per response, reached by adapting kl_coef; null: kl_coef is constant"
    )
    kl_gain: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="K_β of the adaptive controller")
    whiten_rewards: bool = Field(False, description="scale rewards to standard deviation 1 over the rollout")

    # advantages
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="discount per token")
    gae_lambda: Share = Field(0.95, description="λ of GAE; 0: TD error, 1: return − value")
    whiten_advantages: bool = Field(
        True, description="normalize advantages to mean 0 and standard deviation 1 over the rollout"
    )

    # update
    epochs: Count = Field(2, description="passes over a rollout")
    minibatch_size: Count = Field(32, description="episodes per optimizer step")
    micro_batch_tokens: Count = Field(
        1024, description="padded tokens per forward; affects memory and speed, not the result; raise it on a GPU"
    )
    clip_range: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="probability ratios are clipped to 1 ± this"
    )
    value_clip_range: Positive | None = Field(
        0.2, description="values are clipped to the old ones ± this; null: no clipping"
    )
    entropy_coef: NonNegative = Field(0.0, description="weight of the entropy bonus")
    max_grad_norm: Positive = Field(1.0, description="gradient clipping norm")
    update_target_kl: Positive | None = Field(None, description="KL to π_old that ends an update, nats per token")
    policy_learning_rate: Positive = Field(1e-4, description="peak learning rate of the policy")
    value_learning_rate: Positive = Field(3e-4, description="peak learning rate of the value model")
    warmup_steps: Natural = Field(0, description="steps of linear warm-up of the policy's learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate schedule of the policy"
    )
    min_learning_rate_share: Share = Field(
        0.1, description="final learning rate of linear and cosine as a share of the peak"
    )
    weight_decay: NonNegative = Field(0.0, description="weight decay of AdamW")
    value_warmup_steps: Natural = Field(0, description="number of first steps that train only the value model")

    # pretraining gradients (PPO-ptx) and weight averaging
    ptx_coef: NonNegative = Field(0.0, description="weight of next-token prediction on the corpus; 0: none")
    ptx_batch_size: Count = Field(16, description="corpus sequences per minibatch")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="publish an exponential moving average of the weights with this decay"
    )

    # stop and save
    early_stop_kl: Positive | None = Field(None, description="limit of the KL to the reference, in nats per response")
    early_stop_patience: Count = Field(2, description="consecutive steps above early_stop_kl that end the run")
    snapshot_every_steps: Count = Field(
        20, description="steps between policy snapshots for the curve and for selection"
    )
    checkpoint_every_steps: Count = Field(10, description="steps between checkpoints for resuming")

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
        """Options of other layouts that are set and would be ignored."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return [
            f"{name} {getattr(self, name)} has no effect in layout {self.layout}: remove it, or set layout to {layout}"
            for name, layout in LAYOUT_OF.items()
            if layout != self.layout and getattr(self, name) != defaults[name]
        ]
