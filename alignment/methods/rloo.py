"""Method `rloo`: REINFORCE with a leave-one-out baseline, with TRL's RLOOTrainer on PPO's prompts and reward.

Ahmadian et al. 2024, "Back to Basics", eq. 6: of k responses to a prompt, each is weighted by its reward minus the
mean of the other k − 1; the reward includes −β KL. No value model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from alignment.config.base import Count, NonNegative, Positive
from alignment.config.training import AdapterOptions
from alignment.footprint import peaks
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.records import Message, Prompt
from alignment.rules.options import AlignOptions
from alignment.stage import Method, Sizes, Tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from alignment.models.chat import ChatFormat
    from alignment.rewards.components import Component

LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl_per_token",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "missing_eos",
}
TOKEN_BUDGET = 8192


class RLOOConfig(AdapterOptions):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024): k responses per prompt, no value model."""

    steps: Count = Field(60, description="number of rollouts, each followed by an update")
    batch_size: Count = Field(128, description="episodes per step")
    responses_per_prompt: Annotated[int, Field(ge=2)] = Field(
        4, description="k, responses per prompt; the mean reward of the others is the baseline of each"
    )
    max_new_tokens: Count = Field(48, description="maximum response length in tokens")
    temperature: Positive = Field(1.0, description="temperature of sampling and of all log-probabilities")
    kl_coef: NonNegative = Field(0.05, description="KL penalty coefficient, per nat")
    missing_eos_penalty: NonNegative = Field(1.0, description="subtracted from the score of a response without EOS")
    learning_rate: Positive = Field(1e-4, description="peak learning rate, after warm-up")
    max_grad_norm: Positive = Field(1.0, description="gradient clipping norm")
    log_every_steps: Count = Field(1, description="steps between logged metrics")
    checkpoint_every_steps: Count = Field(20, description="steps between checkpoints for resuming")

    @model_validator(mode="after")
    def _whole_groups(self) -> "RLOOConfig":
        if self.batch_size % self.responses_per_prompt:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of responses_per_prompt {self.responses_per_prompt}: "
                "change either"
            )
        return self


def rloo(
    config: RLOOConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    sft: Path,
    reward: Path,
    prompts: Path,
    align: AlignOptions,
) -> dict[str, float]:
    """Train `sft/model` against the reward and write `model/`; resumes from its last checkpoint."""
    from trl import RLOOConfig as TrainerOptions

    from alignment.data.prompts import encode_prompts
    from alignment.models.architecture import longest_sequence
    from alignment.models.chat import load_chat
    from alignment.models.encoding import put_aside
    from alignment.models.quantized import load_base
    from alignment.models.scalar import save_model
    from alignment.rewards.build import reward_parts, rule_rewards
    from alignment.rewards.components import reward_components
    from alignment.training.trl import adapter, micro_batches, on_one_gpu, run_trainer, shared_options, trained_model

    model, chat = load_base(sft / "model", config.lora_rank, config.quantize), load_chat(sft / "model")
    context = longest_sequence(model)
    encoded = encode_prompts(prompts, "train", chat, context, config.max_new_tokens, "align.rloo.max_new_tokens")
    put_aside(out, encoded)
    dataset = conversations(encoded.rows)
    components = reward_components(reward_parts(reward, rule_rewards(align)), chat.tokenizer)
    longest = max(len(tokens) for _, tokens in encoded.rows)
    checkpoints = out / "checkpoint"
    options = TrainerOptions(
        max_steps=config.steps,
        **micro_batches(config, model, config.batch_size, longest + config.max_new_tokens),
        num_generations=config.responses_per_prompt,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.kl_coef,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every_steps,
        save_strategy="steps",
        save_steps=config.checkpoint_every_steps,
        **shared_options(checkpoints, seed, on_cpu=model.device.type == "cpu"),
    )
    trainer = trainer_on_own_tokens(
        chat,
        model=model,
        peft_config=adapter(config, model, seed),
        reward_funcs=reward_function(components, chat, config.missing_eos_penalty),
        args=on_one_gpu(options),
        train_dataset=dataset,
        processing_class=chat.tokenizer,
    )
    names = LOGGED | {f"reward/{component.name}": f"reward/{component.name}" for component in components}
    run_trainer(trainer, checkpoints, journal, names, "rloo")
    save_model(trained_model(model), out / "model", chat.tokenizer)
    return figures_of(journal) | {
        "prompts": float(len(dataset)),
        "prompts_too_long": float(encoded.too_long),
        "prompts_rejected": encoded.counts["rejected"],
        "steps": float(config.steps),
    }


def conversations(rows: Sequence[tuple[Prompt, list[int]]]) -> "Dataset":
    """Prompts in the trainer's format, with their token ids."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": [message.model_dump() for message in row.messages], "prompt_tokens": tokens}
            for row, tokens in rows
        ]
    )


def trainer_on_own_tokens(chat: "ChatFormat", **options: Any) -> "Trainer":
    """TRL's trainer with prompts tokenized as in all other stages.

    The trainer's own rendering would let the text of a prompt become special tokens, and ends with whatever the
    generation prompt opens, such as a thought.
    """
    from trl import RLOOTrainer

    from alignment.distributed.devices import frozen_dtype

    class OwnTokens(RLOOTrainer):
        def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
            turns = [[Message.model_validate(message) for message in prompt] for prompt in prompts]
            return [chat.prompt(messages) for messages in turns], None, {}

    trainer = OwnTokens(**options)
    if trainer.ref_model is not None:
        trainer.ref_model.to(dtype=frozen_dtype())  # type: ignore[call-arg]
    return trainer


def reward_function(
    components: Sequence["Component"], chat: "ChatFormat", missing_eos_penalty: float
) -> Callable[..., list[float | None]]:
    """The trainer's reward function: the total score minus the penalty without EOS; each component is logged."""
    import torch

    from alignment.ppo.shaping import missing_eos_score
    from alignment.rewards.components import component_scores, total_score

    def score(
        completion_ids: list[list[int]], prompt_tokens: list[list[int]], log_metric: Any, **_: Any
    ) -> list[float | None]:
        sequences = [prompt + response for prompt, response in zip(prompt_tokens, completion_ids, strict=True)]
        parts = component_scores(components, chat.tokenizer, sequences, [len(p) for p in prompt_tokens], TOKEN_BUDGET)
        for component in components:
            log_metric(f"reward/{component.name}", float(parts[component.name].mean()))
        ended = torch.tensor([bool(ids) and ids[-1] in chat.end_ids for ids in completion_ids])
        total = missing_eos_score(total_score(components, parts), ended, missing_eos_penalty, "subtract")
        return list(total.tolist())

    return score


def figures_of(journal: Journal) -> dict[str, float]:
    """Plot the run, and return the last step's metrics."""
    from alignment.plots import panels

    lines = journal.read()
    journal.figure("rloo", panels(lines, ["loss", *LOGGED.values(), "grad_norm"], "RLOO"))
    last: dict[str, float] = next((line["values"] for line in reversed(lines) if "reward" in line["values"]), {})
    return {name: last[name] for name in LOGGED.values() if name in last}


def cost(config: RLOOConfig, sizes: Sizes) -> Tokens:
    """A response is sampled, scored, read by policy and reference, and trained on."""
    tokens = config.steps * config.batch_size * sizes.episode_tokens(config.max_new_tokens)
    return Tokens(trained=tokens, read=4 * tokens)


def memory(config: RLOOConfig, model: Footprint, sizes: Sizes) -> int:
    """An update or sampling, beside the reward model."""
    row = sizes.episode_tokens(config.max_new_tokens)
    update = peaks.of_adapter_training(config, model, config.batch_size, row, reference=True)
    held = 1 if config.lora_rank is not None else 2
    sampling = held * model.weights + model.training_state(config.lora_rank) + model.cache(config.batch_size, row)
    return model.weights + max(update, sampling)


METHOD = Method(
    "rloo",
    run=rloo,
    config=RLOOConfig,
    section="align.rloo",
    inputs=("sft", "reward", "prompts"),
    cost=cost,
    memory=memory,
    response_options=("max_new_tokens",),
    less_memory="lower align.rloo.micro_batch_tokens, set align.rloo.gradient_checkpointing: true or lora_rank",
)
