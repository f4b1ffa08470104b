"""Stage `sft`: supervised fine-tuning on demonstrations with TRL's SFTTrainer, loss on the response only."""

import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig as TrainerOptions
from trl import SFTTrainer

from alignment.checkpoint import load_tokenizer
from alignment.config import SFTConfig
from alignment.errors import DataError
from alignment.figures import curve
from alignment.journal import Journal
from alignment.model import check_context, load_causal_model, save_model
from alignment.records import Demonstration, read_records
from alignment.tokenizer import prompt_tokens, response_tokens


class JournalCallback(TrainerCallback):
    """Writes what the trainer logs into the stage's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take over loss, gradient norm and learning rate."""
        names = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy")
        values = {name: float((logs or {})[name]) for name in names if name in (logs or {})}
        if values:
            self._journal.log(values, state.global_step)


def finetune(
    config: SFTConfig, out: Path, journal: Journal, *, seed: int, base: Path, demonstrations: Path
) -> dict[str, float]:
    """Fine-tune `base/model` on `demonstrations.jsonl` and write `model/`; goes on from its last epoch when killed."""
    model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
    check_context(model, config.max_length_tokens, "sft.max_length_tokens")
    rows, _ = read_records(demonstrations / "demonstrations.jsonl", Demonstration)
    dataset, too_long = tokenize(rows, tokenizer, config.max_length_tokens)
    checkpoints = out / "checkpoint"
    options = TrainerOptions(
        output_dir=str(checkpoints),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        seed=seed,
        max_length=config.max_length_tokens,
        completion_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=model.device.type == "cpu",
        logging_steps=config.log_every_steps,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        dataloader_num_workers=0,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[JournalCallback(journal)],
    )
    trainer.remove_callback(PrinterCallback)  # the journal has it
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
    journal.rewind(int(last.rsplit("-", 1)[1]) if last else 0)
    trainer.train(resume_from_checkpoint=last)
    model.eval()
    save_model(model, out / "model", tokenizer)
    shutil.rmtree(checkpoints, ignore_errors=True)
    journal.figure("loss", curve(journal.read(), ["loss"], "SFT loss (nats per response token)"))
    losses = [line["values"]["loss"] for line in journal.read() if "loss" in line["values"]]
    return {
        "loss": losses[-1] if losses else float("nan"),
        "demonstrations": float(len(dataset)),
        "too_long": float(too_long),
    }


def tokenize(rows: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, int]:
    """Token ids with a mask on the response and its EOS; a demonstration that is too long is left out and counted."""
    examples = []
    for row in rows:
        prompt, response = prompt_tokens(tokenizer, row.messages), response_tokens(tokenizer, row.completion)
        if len(prompt) + len(response) <= max_length:
            examples.append(
                {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}
            )
    if not examples:
        raise DataError(f"no demonstration of {len(rows)} fits into {max_length} tokens; raise `sft.max_length_tokens`")
    return Dataset.from_list(examples), len(rows) - len(examples)
