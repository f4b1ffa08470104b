"""Stage `sft`: supervised fine-tuning on demonstrations with TRL's SFTTrainer, loss on the response only."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
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
from alignment.trainers import by_epochs, run_trainer, shared_options


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
        weight_decay=0.01,
        max_length=config.max_length_tokens,
        completion_only_loss=True,
        **by_epochs(config),
        **shared_options(checkpoints, seed, on_cpu=model.device.type == "cpu"),
    )
    trainer = SFTTrainer(model=model, args=options, train_dataset=dataset, processing_class=tokenizer)
    run_trainer(trainer, checkpoints, journal, {"mean_token_accuracy": "mean_token_accuracy"})
    model.eval()
    save_model(model, out / "model", tokenizer)
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
