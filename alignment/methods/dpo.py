"""Method `dpo`: direct preference optimization with TRL's DPOTrainer, from the comparisons and without a reward model.

Rafailov et al. 2023, eq. 7: loss = −log σ( β log π(y_w)/π_ref(y_w) − β log π(y_l)/π_ref(y_l) ), π_ref is SFT. The
training comparisons are those of the reward model, a pair per example.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from alignment.config.base import Count, Positive
from alignment.config.training import AdapterOptions
from alignment.footprint import peaks
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.records import Comparison
from alignment.stage import Method, Sizes, Tokens

if TYPE_CHECKING:
    from datasets import Dataset

    from alignment.models.encoding import Pair

LOGGED = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "entropy": "entropy",
}
TOKENS = {"prompt_ids": "prompt_tokens", "chosen_ids": "chosen_tokens", "rejected_ids": "rejected_tokens"}


class DPOConfig(AdapterOptions):
    """Direct preference optimization on the training comparisons (Rafailov et al. 2023)."""

    epochs: Positive = Field(1, description="passes over the comparisons")
    batch_size: Count = Field(32, description="comparisons per optimizer step")
    learning_rate: Positive = Field(1e-4, description="peak learning rate, after warm-up")
    beta: Positive = Field(0.1, description="β, strength of the KL constraint to SFT")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, description="assumed rate of flipped labels")
    max_length_tokens: Count = Field(128, description="longer conversations are dropped")
    log_every_steps: Count = Field(5, description="optimizer steps between logged metrics")


def dpo(config: DPOConfig, out: Path, journal: Journal, *, seed: int, sft: Path, comparisons: Path) -> dict[str, float]:
    """Train `sft/model` on `comparisons/train.jsonl` and write `model/`; resumes from its last complete epoch."""
    from trl import DPOConfig as TrainerOptions
    from trl import DPOTrainer

    from alignment.distributed.devices import frozen_dtype
    from alignment.models.chat import load_chat
    from alignment.models.encoding import encode_comparisons, put_aside
    from alignment.models.quantized import load_base
    from alignment.models.scalar import check_context, load_causal_model, save_model
    from alignment.plots import panels
    from alignment.training.trl import (
        WeightedByRows,
        adapter,
        by_epochs,
        micro_batches,
        on_one_gpu,
        run_trainer,
        shared_options,
        trained_model,
    )

    class Trainer(WeightedByRows, DPOTrainer):
        """TRL's trainer, in micro-batches."""

    model, chat = load_base(sft / "model", config.lora_rank, config.quantize), load_chat(sft / "model")
    check_context(model, config.max_length_tokens, "align.dpo.max_length_tokens")
    train, option = comparisons / "train.jsonl", "align.dpo.max_length_tokens"
    encoded = encode_comparisons(train, chat, config.max_length_tokens, option)
    put_aside(out, encoded)
    dataset = pairs(encoded.rows)
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for _, pair in encoded.rows)
    checkpoints = out / "checkpoint"
    options = TrainerOptions(
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        max_length=None,  # longer comparisons were dropped
        remove_unused_columns=False,  # the collator reads their tokens
        logging_first_step=True,
        **by_epochs(config),
        **micro_batches(config, model, config.batch_size, 2 * longest),
        **shared_options(checkpoints, seed, on_cpu=model.device.type == "cpu"),
    )
    trainer = Trainer(
        model=model,
        # the reference of an adapter is its base
        ref_model=load_causal_model(sft / "model", frozen_dtype()) if config.lora_rank is None else None,
        peft_config=adapter(config, model, seed),
        args=on_one_gpu(options),
        train_dataset=dataset,
        processing_class=chat.tokenizer,
        data_collator=own_tokens(chat.pad_token_id),
    )
    run_trainer(trainer, checkpoints, journal, LOGGED, "dpo")
    save_model(trained_model(model), out / "model", chat.tokenizer)
    lines = journal.read()
    journal.figure("dpo", panels(lines, ["loss", *LOGGED.values()], "DPO"))
    last: dict[str, float] = next((line["values"] for line in reversed(lines) if "loss" in line["values"]), {})
    counts = {"comparisons": float(len(dataset)), **encoded.counts}
    return {name: last[name] for name in ("loss", "accuracy", "margin") if name in last} | counts


def own_tokens(pad_token_id: int) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """A collator with this project's tokenization of a comparison, instead of the trainer's.

    They differ for text that contains a special token, and for tokenizers that merge a response with its prompt.
    Returns padded token ids and masks, chosen before rejected.
    """
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    collate = DataCollatorForPreference(pad_token_id=pad_token_id)

    def collate_own(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = collate(
            [{theirs: example[ours] for theirs, ours in TOKENS.items()} for example in examples]
        )
        return batch

    return collate_own


def pairs(rows: Sequence[tuple[Comparison, "Pair"]]) -> "Dataset":
    """Comparisons as text, which the trainer asks for, and as token ids."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"prompt": row.prompt.text, "chosen": row.chosen.text, "rejected": row.rejected.text}
            | dict(zip(TOKENS.values(), (pair.prompt, pair.chosen, pair.rejected), strict=True))
            for row, pair in rows
        ]
    )


def cost(config: DPOConfig, sizes: Sizes) -> Tokens:
    """A pair is two sequences, trained on and read by the reference."""
    tokens = 2 * sizes.comparisons * (1 - sizes.heldout_share) * config.max_length_tokens * config.epochs
    return Tokens(trained=tokens, read=tokens)


def memory(config: DPOConfig, model: Footprint, sizes: Sizes) -> int:
    """An update; a pair is two sequences."""
    return peaks.of_adapter_training(config, model, config.batch_size, 2 * config.max_length_tokens, reference=True)


METHOD = Method(
    "dpo",
    run=dpo,
    config=DPOConfig,
    section="align.dpo",
    inputs=("sft", "comparisons"),
    cost=cost,
    memory=memory,
    sequence_options=("max_length_tokens",),
    less_memory="lower align.dpo.micro_batch_tokens, set align.dpo.gradient_checkpointing: true or lora_rank",
    weights_comparisons=False,
)
