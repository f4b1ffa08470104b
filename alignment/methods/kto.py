"""Method `kto`: Kahneman-Tversky optimization with TRL's KTOTrainer: desirable and undesirable answers, no pairs.

Ethayarajh et al. 2024, eq. 7 and 8. With r(x, y) = log π(y|x)/π_ref(y|x), π_ref is SFT, and z0 the KL divergence of π
from π_ref, estimated on prompts with the answers of other rows of the batch (shuffled, so mostly of other prompts), and
clipped at 0:

    loss = mean of  λ_D (1 − σ(β (r − z0)))  over desirable  and  λ_U (1 − σ(β (z0 − r)))  over undesirable answers.

Every training comparison yields both: its chosen response is desirable, its rejected response undesirable.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from alignment.config.base import Count, Positive
from alignment.config.training import AdapterOptions
from alignment.errors import DataError
from alignment.footprint import peaks
from alignment.footprint.model import Footprint
from alignment.journal import Journal
from alignment.records import Comparison
from alignment.stage import Method, Sizes, Tokens

if TYPE_CHECKING:
    from datasets import Dataset

    from alignment.models.encoding import Pair

LOGGED = {
    "kl": "kl",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}


class KTOConfig(AdapterOptions):
    """Kahneman-Tversky optimization on the training comparisons (Ethayarajh et al. 2024)."""

    epochs: Positive = Field(1, description="passes over the responses")
    batch_size: Annotated[int, Field(ge=2)] = Field(
        32, description="responses per optimizer step; z0 is estimated over the batch"
    )
    learning_rate: Positive = Field(1e-4, description="peak learning rate, after warm-up")
    beta: Positive = Field(0.1, description="β, strength of the KL constraint to SFT")
    desirable_weight: Positive = Field(1.0, description="λ_D, weight of chosen responses")
    undesirable_weight: Positive = Field(1.0, description="λ_U, weight of rejected responses")
    max_length_tokens: Count = Field(128, description="longer conversations are dropped")
    log_every_steps: Count = Field(5, description="optimizer steps between logged metrics")


def kto(config: KTOConfig, out: Path, journal: Journal, *, seed: int, sft: Path, comparisons: Path) -> dict[str, float]:
    """Train `sft/model` on `comparisons/train.jsonl` and write `model/`; resumes from its last complete epoch."""
    from trl import KTOConfig as TrainerOptions

    from alignment.distributed.devices import frozen_dtype
    from alignment.models.chat import load_chat
    from alignment.models.encoding import encode_comparisons, put_aside
    from alignment.models.quantized import load_base
    from alignment.models.scalar import check_context, load_causal_model, save_model
    from alignment.plots import panels
    from alignment.training.kto import WholeBatchKTO
    from alignment.training.trl import (
        adapter,
        by_epochs,
        micro_batches,
        on_one_gpu,
        run_trainer,
        shared_options,
        trained_model,
    )

    model, chat = load_base(sft / "model", config.lora_rank, config.quantize), load_chat(sft / "model")
    check_context(model, config.max_length_tokens, "align.kto.max_length_tokens")
    train, option = comparisons / "train.jsonl", "align.kto.max_length_tokens"
    encoded = encode_comparisons(train, chat, config.max_length_tokens, option)
    put_aside(out, encoded)
    dataset = labelled_answers(encoded.rows)
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for _, pair in encoded.rows)
    shuffled = in_whole_batches(dataset.shuffle(seed=seed), config.batch_size)  # the trainer reads them in this order
    checkpoints = out / "checkpoint"
    options = TrainerOptions(
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        max_length=None,  # longer answers were dropped
        remove_unused_columns=False,  # the collator reads their tokens
        logging_first_step=True,
        **by_epochs(config),
        **micro_batches(config, model, config.batch_size, longest),
        **shared_options(checkpoints, seed, on_cpu=model.device.type == "cpu"),
    )
    trainer = WholeBatchKTO(
        model=model,
        # the reference of an adapter is its base
        ref_model=load_causal_model(sft / "model", frozen_dtype()) if config.lora_rank is None else None,
        peft_config=adapter(config, model, seed),
        args=on_one_gpu(options),
        train_dataset=beside_others(shuffled, config.batch_size),
        processing_class=chat.tokenizer,
        data_collator=both_answers(chat.pad_token_id, config.max_length_tokens),
    )
    run_trainer(trainer, checkpoints, journal, LOGGED, "kto")
    save_model(trained_model(model), out / "model", chat.tokenizer)
    lines = journal.read()
    journal.figure("kto", panels(lines, ["loss", *LOGGED.values()], "KTO"))
    last = {name: value for line in lines for name, value in line["values"].items()}  # a batch may have one label only
    counts = {"answers": float(len(dataset)), **encoded.counts}
    return {name: last[name] for name in ("loss", "kl", "margin") if name in last} | counts


def in_whole_batches(dataset: "Dataset", batch_size: int) -> "Dataset":
    """The rows without a last batch of one, which has no other row to estimate z0 with. Raises DataError for a row."""
    if len(dataset) == 1:
        raise DataError("align.method kto needs two answers at least, and 1 fits: raise `align.kto.max_length_tokens`")
    return dataset.select(range(len(dataset) - 1)) if len(dataset) % batch_size == 1 else dataset


def beside_others(dataset: "Dataset", batch_size: int) -> "Dataset":
    """The rows, each with the answer of the row before it in its batch (of the last, for the first), for z0."""
    answers = list(dataset["answer_tokens"])
    batches = [answers[start : start + batch_size] for start in range(0, len(answers), batch_size)]
    others = [other for batch in batches for other in (batch[-1], *batch[:-1])]
    return dataset.add_column("other_tokens", others)


def both_answers(pad_token_id: int, max_length: int) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """A collator of prompts with their answers, and with those of other rows."""
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    collate = DataCollatorForUnpairedPreference(pad_token_id=pad_token_id, max_length=max_length)

    def collate_batch(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = collate(
            [
                {
                    "prompt_ids": example["prompt_tokens"],
                    "completion_ids": example["answer_tokens"],
                    "KL_completion_ids": example["other_tokens"],
                    "label": example["label"],
                }
                for example in examples
            ]
        )
        return batch

    return collate_batch


def labelled_answers(rows: Sequence[tuple[Comparison, "Pair"]]) -> "Dataset":
    """Both answers of each comparison, label True for chosen."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": row.prompt.text,
                "completion": response.text,
                "label": label,
                "prompt_tokens": pair.prompt,
                "answer_tokens": tokens,
            }
            for row, pair in rows
            for response, tokens, label in ((row.chosen, pair.chosen, True), (row.rejected, pair.rejected, False))
        ]
    )


def cost(config: KTOConfig, sizes: Sizes) -> Tokens:
    """An answer is trained on and read by the reference, and both also read an answer to another prompt."""
    tokens = 2 * sizes.comparisons * (1 - sizes.heldout_share) * config.max_length_tokens * config.epochs
    return Tokens(trained=tokens, read=3 * tokens)


def memory(config: KTOConfig, model: Footprint, sizes: Sizes) -> int:
    """An update."""
    return peaks.of_adapter_training(config, model, config.batch_size, config.max_length_tokens, reference=True)


METHOD = Method(
    "kto",
    run=kto,
    config=KTOConfig,
    section="align.kto",
    inputs=("sft", "comparisons"),
    cost=cost,
    memory=memory,
    sequence_options=("max_length_tokens",),
    less_memory="lower align.kto.micro_batch_tokens, set align.kto.gradient_checkpointing: true or lora_rank",
    weights_comparisons=False,
)
