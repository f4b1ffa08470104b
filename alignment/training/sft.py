"""Stage `sft`: supervised fine-tuning on demonstrations with TRL's SFTTrainer, loss on the response only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader, RandomSampler
from trl import SFTConfig as TrainerOptions
from trl import SFTTrainer

from alignment.config.stages import SFTConfig
from alignment.distributed.collectives import on_main, process_count, share_of
from alignment.distributed.devices import in_bfloat16
from alignment.distributed.sharding import whole_state
from alignment.journal import Journal
from alignment.models.chat import Turn, load_chat
from alignment.models.encoding import encode_demonstrations, put_aside
from alignment.models.quantized import load_base
from alignment.models.scalar import check_context, save_model
from alignment.plots import curve
from alignment.training.trl import (
    adapter,
    by_epochs,
    micro_batches,
    on_one_gpu,
    run_trainer,
    shared_options,
    trained_model,
)


def finetune(
    config: SFTConfig, out: Path, journal: Journal, *, seed: int, base: Path, demonstrations: Path
) -> dict[str, float]:
    """Fine-tune `base/model` on `demonstrations.jsonl` and write `model/`; resumes after its last complete epoch."""
    model, chat = load_base(base / "model", config.lora_rank, config.quantize), load_chat(base / "model")
    check_context(model, config.max_length_tokens, "sft.max_length_tokens")
    encoded = encode_demonstrations(demonstrations, chat, config.max_length_tokens, "sft.max_length_tokens")
    put_aside(out, encoded)
    dataset = masked([turn for _, turn in encoded.rows])
    checkpoints = out / "checkpoint"
    options = TrainerOptions(
        weight_decay=0.01,
        max_length=config.max_length_tokens,
        completion_only_loss=True,
        **by_epochs(config),
        **micro_batches(config, model, config.batch_size, max(map(len, dataset["input_ids"]))),
        **shared_options(checkpoints, seed, on_cpu=model.device.type == "cpu"),
    )
    trainer = SharingTrainer(
        model=model,
        args=on_one_gpu(options),
        train_dataset=dataset,
        processing_class=chat.tokenizer,
        peft_config=adapter(config, model, seed),
    )
    run_trainer(trainer, checkpoints, journal, {"mean_token_accuracy": "mean_token_accuracy"}, "sft")
    del trainer  # with its optimizer
    model = trained_model(model)
    on_main(save_model, model, out / "model", chat.tokenizer, whole_state(model))
    journal.figure("loss", curve(journal.read(), ["loss"], "SFT loss (nats per response token)"))
    losses = [line["values"]["loss"] for line in journal.read() if "loss" in line["values"]]
    return {
        "loss": losses[-1] if losses else float("nan"),
        "demonstrations": float(len(dataset)),
        **encoded.counts,
    }


class SharingTrainer(SFTTrainer):
    """TRL's trainer with every batch sharded over the processes, so that a step equals that of a single process.

    accelerate would distribute whole batches, and pad the last ones of an epoch with rows of the first. The loss is a
    mean over the tokens of all processes (TRL counts them), whatever the share of each.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """accelerate would sum the gradients of sharded models in bfloat16 too."""
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and in_bfloat16():
            plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)

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


def masked(turns: Sequence[Turn]) -> Dataset:
    """Token ids of whole conversations, with a mask on the answer and the token that ends it."""
    return Dataset.from_list(
        [
            {
                "input_ids": turn.ids + turn.rest,
                "completion_mask": [0] * len(turn.prompt) + [1] * len(turn.response) + [0] * len(turn.rest),
            }
            for turn in turns
        ]
    )
