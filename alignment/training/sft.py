"""Stage `sft`: supervised fine-tuning on demonstrations with TRL's SFTTrainer, loss on the response only."""

from pathlib import Path
from typing import Any

from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TrainerOptions
from trl import SFTTrainer

from alignment.config.stages import SFTConfig
from alignment.distributed.collectives import on_main, process_count, share_of
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import check_context, load_causal_model, save_model
from alignment.models.tokenizer import prompt_tokens, response_tokens
from alignment.plots import curve
from alignment.records import Demonstration, read_records
from alignment.training.trl import by_epochs, run_trainer, shared_options


def finetune(
    config: SFTConfig, out: Path, journal: Journal, *, seed: int, base: Path, demonstrations: Path
) -> dict[str, float]:
    """Fine-tune `base/model` on `demonstrations.jsonl` and write `model/`; resumes after its last complete epoch."""
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
    trainer = SharingTrainer(model=model, args=options, train_dataset=dataset, processing_class=tokenizer)
    run_trainer(trainer, checkpoints, journal, {"mean_token_accuracy": "mean_token_accuracy"})
    model.eval()
    on_main(save_model, model, out / "model", tokenizer)
    journal.figure("loss", curve(journal.read(), ["loss"], "SFT loss (nats per response token)"))
    losses = [line["values"]["loss"] for line in journal.read() if "loss" in line["values"]]
    return {
        "loss": losses[-1] if losses else float("nan"),
        "demonstrations": float(len(dataset)),
        "too_long": float(too_long),
    }


class SharingTrainer(SFTTrainer):
    """TRL's trainer with every batch sharded over the processes, so that a step equals that of a single process.

    accelerate would distribute whole batches, and pad the last ones of an epoch with rows of the first. The loss is a
    mean over the tokens of all processes (TRL counts them), whatever the share of each.
    """

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of a single process with the same seed; this process collates its share of each."""
        if process_count() == 1:
            return super().get_train_dataloader()
        options = self.args
        rows: Any = self.train_dataset
        batches = DataLoader(
            rows,
            batch_size=options.per_device_train_batch_size,
            sampler=RandomSampler(rows),
            collate_fn=self._collate_share,
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            batches,
            options.device,
            num_processes=1,
            process_index=0,
            use_seedable_sampler=True,
            data_seed=options.seed,
            put_on_device=True,
        )
        return prepared

    def _collate_share(self, examples: list[dict[str, Any]]) -> Any:
        """This process's rows, or a row without a target token if it has none, since every step is a collective."""
        untargeted = {**examples[0], "labels": [-100] * len(examples[0]["labels"])}
        return self.data_collator(share_of(examples) or [untargeted])


def tokenize(rows: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, int]:
    """Token ids with a mask on the response and its EOS; demonstrations that are too long are dropped and counted."""
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
