"""Shared parts of training loops: micro-batches and their gradients, a learning-rate schedule, resumable state."""

import math
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from alignment.distributed.collectives import gathered, on_main, sum_gradients
from alignment.distributed.sharding import Shards, add_gradients, part_of, part_of_optimizer, whole_on_main
from alignment.distributed.threads import side_by_side
from alignment.errors import CheckpointError, TrainingError
from alignment.footprint.model import ACTIVATION_BYTES, micro_batch_tokens, shape_of

SMALL_MODEL = 2**25  # parameters


def cosine_schedule(optimizer: Optimizer, steps: int, warmup_share: float, min_share: float) -> LambdaLR:
    """Linear warm-up over `warmup_share` of the steps, then cosine decay to `min_share` of the peak."""
    warmup = max(1, round(steps * warmup_share))

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        progress = min(1.0, (done - warmup) / max(1, steps - warmup))
        return min_share + (1 - min_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def token_budget(option: int | None, model: PreTrainedModel, *, recompute: bool = False) -> int:
    """Padded tokens of a micro-batch: the recipe's, or as many as keep activations within ACTIVATION_BYTES (on a GPU a
    quarter of its memory). Results do not depend on it."""
    memory = ACTIVATION_BYTES
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory // 4
    return micro_batch_tokens(shape_of(model.config), option, memory, recompute=recompute)


def is_small(weights: Iterable[nn.Parameter]) -> bool:
    """Whether two halves of a batch are computed faster in a thread each than one after the other by all threads."""
    return sum(weight.numel() for weight in weights) <= SMALL_MODEL


def backward(
    losses: Sequence[Callable[[], Tensor]],
    weights: Sequence[nn.Parameter],
    shards: Shards | None = None,
    idle: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Set each weight's gradient to that of the sum of the losses, and return the sum. Each process passes the losses
    of its share (none if its share is empty); sum and gradients are totals over all processes.

    Of a loss of shape (n,) the first value is minimised, and the others are metrics. Losses are those of a batch's
    micro-batches: each is computed and its activations are released before the next. Two losses of a small model are
    computed in parallel threads (`alignment.distributed.threads`) and summed in order. Their forwards must not draw
    random numbers, as dropout does: the order of the draws would not be deterministic.

    Of a model that is sharded, a process with fewer losses than others computes `idle`, a loss of 0.
    """
    if shards is not None:
        assert idle is not None
        return _backward_in_shards(losses, weights, shards, idle)
    learnt = [weight for weight in weights if weight.requires_grad]

    def accumulate(loss: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            value = loss()
            value.flatten()[0].backward()
        return value.detach().cpu()

    def share() -> list[Tensor]:
        for weight in learnt:
            weight.grad = None
        if len(losses) == 2 and is_small(weights):
            return _backward_in_threads(losses[0], losses[1], learnt)
        return [accumulate(loss) for loss in losses]

    values = [value for process_values in gathered(share) for value in process_values]
    sum_gradients(learnt)
    return torch.stack(values).sum(dim=0)


def _backward_in_threads(
    first: Callable[[], Tensor], second: Callable[[], Tensor], learnt: Sequence[nn.Parameter]
) -> list[Tensor]:
    """The values of two losses, and the sum of their gradients in the weights."""

    def gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with torch.enable_grad():
            value = loss()
            return value.detach(), torch.autograd.grad(value.flatten()[0], learnt, allow_unused=True)

    shares = side_by_side(lambda: gradients(first), lambda: gradients(second), learnt[0].device)
    for weight, *parts in zip(learnt, *(gradient for _, gradient in shares), strict=True):
        present = [part for part in parts if part is not None]
        weight.grad = sum(present[1:], present[0]) if present else None
    return [value.cpu() for value, _ in shares]


def _backward_in_shards(
    losses: Sequence[Callable[[], Tensor]],
    weights: Sequence[nn.Parameter],
    shards: Shards,
    idle: Callable[[], Tensor],
) -> Tensor:
    """`backward` of a single sharded model, whose gradients FSDP sums over the processes."""
    values: list[Tensor] = []

    def first(loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        values.append(value.detach().cpu())
        return value.flatten()[0]

    for weight in weights:
        weight.grad = None
    (model,) = shards.parts
    add_gradients(shards, model, losses, first, idle)
    return torch.stack([value for shares in gathered(lambda: values) for value in shares]).sum(dim=0)


def write_state(content: Mapping[str, Any], path: Path) -> None:
    """Write a training state atomically; on a full disk no partial file remains."""
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class TrainingState:
    """Model, optimizer, schedule and random state in one file, written atomically.

    It is kept until the stage's output is published, so that a kill before that does not repeat the training. All
    processes hold the same state: the main process writes it, and any number of processes can resume from it.
    """

    def __init__(self, directory: Path, model: PreTrainedModel, optimizer: Optimizer, schedule: LambdaLR) -> None:
        self.file = directory / "state.pt"
        self._model, self._optimizer, self._schedule = model, optimizer, schedule

    def save(self, step: int) -> None:
        """Write the state after `step` atomically, with whole tensors."""
        content: dict[str, Any] = {
            "step": step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": torch.get_rng_state(),
        }
        on_main(self._write, whole_on_main(content))

    def _write(self, content: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_state(content, self.file)

    def resume(self) -> int:
        """Load the last state; return its number of completed steps, 0 without a state."""
        if not self.file.exists():
            return 0
        try:
            content = torch.load(self.file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.file} contains objects other than tensors, which could run code, and is not loaded: remove "
                f"{self.file.parent} to start from step 0"
            ) from error
        own = self._model.state_dict()
        self._model.load_state_dict({name: part_of(value, own[name]) for name, value in content["model"].items()})
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        self._optimizer.load_state_dict(part_of_optimizer(content["optimizer"], weights))
        self._schedule.load_state_dict(content["schedule"])
        torch.set_rng_state(content["random"])
        return int(content["step"])

    def last_good(self) -> str:
        """The path of the last good state, for error messages."""
        return str(self.file) if self.file.exists() else "none yet"

    def check(self, loss: Tensor, norm: Tensor, step: int, option: str) -> None:
        """Raises TrainingError before an optimizer step with a loss or a gradient that is not finite."""
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"the loss is {loss.item():g} and the norm of its gradient {norm.item():g} at step {step}; lower "
                f"`{option}`. Last good: {self.last_good()}"
            )
