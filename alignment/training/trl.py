"""Shared parts of the stages that use a trainer of TRL: resuming after a kill, and logging."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from huggingface_hub import constants
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from alignment.config.training import AdapterOptions
from alignment.distributed.collectives import process_count
from alignment.distributed.devices import in_bfloat16
from alignment.distributed.sharding import enabled, sum_without_nccl, whole_tensor
from alignment.errors import CheckpointError, TrainingError
from alignment.journal import Journal
from alignment.models.heads import at_least_float32
from alignment.models.lora import has_adapter, lora_config, merge_adapters
from alignment.models.quantized import before_quantization, is_quantized, merged_over
from alignment.models.scalar import load_causal_model
from alignment.progress import Progress
from alignment.training.loop import token_budget

constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL's trainers report to the hub, which may have been imported before us
Arguments = TypeVar("Arguments", bound=TrainingArguments)
ALWAYS = {name: name for name in ("loss", "grad_norm", "learning_rate")}


class EpochOptions(Protocol):
    """Options of a stage that trains on rows for a number of epochs."""

    @property
    def epochs(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def log_every_steps(self) -> int: ...


class JournalCallback(TrainerCallback):
    """Writes the trainer's logs to the stage's journal. `names` maps the trainer's names to the journal's."""

    def __init__(self, journal: Journal, names: Mapping[str, str]) -> None:
        self._journal, self._names = journal, {**ALWAYS, **names}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Log loss, gradient norm, learning rate and the metrics in `names`."""
        values = {ours: float((logs or {})[theirs]) for theirs, ours in self._names.items() if theirs in (logs or {})}
        if values:
            self._journal.log(values, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log before a checkpoint: means over steps on both sides of it would differ after a kill."""
        control.should_log |= control.should_save

    on_epoch_end = on_step_end  # checkpoints are saved by step or by epoch


class ProgressCallback(TrainerCallback):
    """Shows the trainer's steps as those of our own loops; its own bar is off."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the step from which the training resumes."""
        self._progress = Progress(self._name, state.max_steps)
        self._progress.skip(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the step."""
        if self._progress is not None:
            self._progress.reach(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.close()


class FiniteGradients(TrainerCallback):
    """Stops before a step with a gradient that is not finite, so that no checkpoint contains its result."""

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Prepares a model that is sharded over processes on the CPU."""
        if model is not None and args.device.type == "cpu":
            sum_without_nccl(model)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Raises TrainingError with the last good checkpoint."""
        assert model is not None, "the trainer passes its model"
        sums = [whole_tensor(weight.grad.sum()) for weight in model.parameters() if weight.grad is not None]
        if not torch.isfinite(torch.stack(sums)).all():
            raise TrainingError(
                f"the gradient is not finite at step {state.global_step + 1}; lower the learning rate of this stage. "
                f"Last good: {last_whole_checkpoint(self._checkpoints) or 'none yet'}"
            )


def shared_options(checkpoints: Path, seed: int, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of every trainer: no console output, the stage's precision, only the last checkpoint kept."""
    return {
        "output_dir": str(checkpoints),
        "seed": seed,
        "bf16": in_bfloat16(),
        "use_cpu": on_cpu,
        "save_total_limit": 1,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # it would hide a loss that is not finite behind earlier ones
        "accelerator_config": {"use_configured_state": enabled()},  # else accelerate forgets what it was told
    }


def micro_batches(config: AdapterOptions, model: PreTrainedModel, batch_size: int, row_tokens: int) -> dict[str, Any]:
    """Arguments of memory: a batch in micro-batches of equal size within the token budget, and recomputation.

    `row_tokens` is the length of the longest row; all rows are taken to be as long, since the trainer forms
    micro-batches in the order of its sampler. Each process has a share of every micro-batch.
    """
    budget = process_count() * token_budget(config.micro_batch_tokens, model, recompute=config.gradient_checkpointing)
    rows = max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and (n == 1 or n * row_tokens <= budget))
    return {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": batch_size // rows,
        "activation_checkpointing": config.gradient_checkpointing,
    }


def adapter(config: AdapterOptions, model: PreTrainedModel, seed: int) -> LoraConfig | None:
    """The adapter that a trainer adds to its model; None for whole models. It is drawn from `seed`."""
    if config.lora_rank is None:
        return None
    torch.manual_seed(seed)
    return lora_config(model, config.lora_rank, config.lora_alpha, config.lora_targets)


def trained_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model that a trainer trained in place, as a plain one: adapters are merged, layers no longer recomputed.

    An adapter over quantized weights is merged into the weights of the checkpoint that they were read from.
    """
    if is_quantized(model):
        return merged_over(load_causal_model(before_quantization(model)), model)
    if has_adapter(model):
        merge_adapters(model)
    if model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    return model


class WeightedByRows(Trainer):
    """A trainer whose loss is a mean over rows: micro-batches weigh by their rows, so that a step is that of the batch.

    The trainer takes the mean of the micro-batches' means, which differs where the last micro-batch is smaller.
    """

    _rows: tuple[int, int] = (1, 1)  # of the batch: rows, micro-batches

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows = sum(len(sample["input_ids"]) for sample in samples), len(samples)
        return samples, items

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The mean over the micro-batch, times its share of the batch's rows and the number of micro-batches."""
        loss: Any = super().compute_loss(model, inputs, *args, **options)
        rows, count = self._rows
        return loss if count == 1 else loss * (len(inputs["input_ids"]) * count / rows)


def on_one_gpu(options: Arguments) -> Arguments:
    """The trainer's arguments for the GPU of this process: with several in sight, it would copy the model to all."""
    options._n_gpu = min(options.n_gpu, 1)
    return options


def by_epochs(config: EpochOptions) -> dict[str, Any]:
    """Arguments of training by epochs: a short warm-up, cosine decay, a checkpoint per epoch."""
    return {
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "logging_steps": config.log_every_steps,
        "save_strategy": "epoch",
    }


def run_trainer(trainer: Trainer, checkpoints: Path, journal: Journal, names: Mapping[str, str], name: str) -> None:
    """Train, resuming from the last checkpoint if there is one, and write the log to the journal. `names` maps the
    trainer's metrics to the journal's; `name` is what is shown of its progress."""
    trainer.add_callback(JournalCallback(journal, names))
    trainer.add_callback(FiniteGradients(checkpoints))
    trainer.add_callback(ProgressCallback(name))
    trainer.remove_callback(PrinterCallback)  # replaced by the journal
    model: Any = trainer.model
    for weight in model.parameters():  # TRL makes adapters over quantized weights bfloat16
        weight.data = at_least_float32(weight.data) if weight.requires_grad else weight.data
    last = last_whole_checkpoint(checkpoints)
    journal.rewind(step_of(last) if last else 0)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{last} contains objects other than tensors, which could run code, and is not loaded: remove "
            f"{checkpoints} to start from step 0"
        ) from error


def last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint.

    The trainer writes file by file under the final name, its own state last, and would silently resume from a
    checkpoint that a kill left without an optimizer.
    """
    whole = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which `checkpoint-STEP` was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
