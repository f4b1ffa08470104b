"""Collectives of a distributed run: each process does its share, and every process gets the whole result.

`accelerate launch` (or `torchrun`) starts a script several times, and `train_ppo` connects the processes. Rollouts are
sharded by rows and gathered, so that everything that needs a whole rollout (whitening, KL, metrics, early stopping)
is computed from the same numbers in every process. Minibatches are sharded by rows too, each loss divided by the tokens
of the whole minibatch, and the gradients are summed over processes once per optimizer step.

`DistributedDataParallel` would average gradients over processes, which weighs a token by the number of tokens on
its process, and would wait for a process whose share is empty; a sum has neither flaw and is as simple. Each process
holds a whole copy of the models, unless `sharding` shards those that are trained.

In a single process every function here is a no-op, and torch.distributed is not even initialised.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn

from alignment.errors import ConfigError, TrainingError

T = TypeVar("T")
P = ParamSpec("P")

BUCKET_VALUES = 2**26  # gradients reduced at a time: bounds the memory of their copy


class OtherFailed(TrainingError):
    """Another process failed in its part of the work; the message has its error."""


class OutOfStep(TrainingError):
    """A process failed inside a collective on which the others wait: only the launcher can end them."""


def connect(batch_size: int, device: torch.device) -> None:
    """Connect to the other processes, if a launcher started several. Raises ConfigError if the run cannot be sharded.

    `device` is that of the models: processes communicate through gloo on the CPU, through NCCL on GPUs.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        PartialState(cpu=device.type == "cpu")
    if process_count() < started:
        raise ConfigError(
            f"WORLD_SIZE is {started}, but this process is not connected to any other: create "
            "accelerate.PartialState(cpu=True) at the top of the script if the models stay on the CPU"
        )
    if process_count() > 1:
        for problem in _problems(batch_size, device):
            raise ConfigError(problem)


def _problems(batch_size: int, device: torch.device) -> Iterator[str]:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        yield (
            "PPO cannot run under DeepSpeed: launch it with deploy/accelerate/fsdp.yaml (models split over GPUs), "
            "deploy/accelerate/ddp.yaml (whole models on each) or deploy/accelerate/cpu-2.yaml"
        )
    if batch_size < process_count():
        yield (
            f"batch_size {batch_size} leaves some of the {process_count()} processes without an episode: raise "
            f"batch_size to at least {process_count()}, or launch fewer processes"
        )
    own = PartialState().device
    if device.type != own.type or (device.index is not None and device.index != own.index):
        yield (
            f"the policy of process {process_index()} is on {device} and this process works on {own}: move the models "
            "there with .to(accelerate.PartialState().device) before train_ppo"
        )


def process_count() -> int:
    """The number of processes of this run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """The rank of this process, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


def share_of(rows: Sequence[T]) -> list[T]:
    """This process's rows: every n-th, with n processes, so that sorted rows are spread evenly."""
    return list(rows[process_index() :: process_count()])


def interleaved(shares: Sequence[Sequence[T]]) -> list[T]:
    """The rows of all shares in the order they had before `share_of`."""
    rows: list[T | None] = [None] * sum(map(len, shares))
    for number, share in enumerate(shares):
        rows[number :: len(shares)] = share
    return rows  # type: ignore[return-value]


def gathered(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> list[T]:
    """Run `work` in every process and return the results of all, in order of rank.

    A collective. An error in one process raises there unchanged, and as OtherFailed in all others, so that none waits
    forever. Results are pickled: tensors must be on the CPU.
    """
    if process_count() == 1:
        return [work(*args, **options)]
    failure: Exception | None = None
    result: T | None = None
    try:
        result = work(*args, **options)
    except OutOfStep:
        raise
    except Exception as error:
        failure = error
    message = None if failure is None else f"{type(failure).__name__}: {failure}"
    results: list[tuple[T, str | None]] = gather_object([(result, message)])
    if failure is not None:
        raise failure
    for number, (_, other) in enumerate(results):
        if other is not None:
            raise OtherFailed(f"process {number} failed with {other}")
    return [value for value, _ in results]


def on_main(work: Callable[P, object], *args: P.args, **options: P.kwargs) -> None:
    """Run `work` (whatever writes to disk) in the main process alone; all others wait until it is done."""
    gathered(lambda: work(*args, **options) if process_index() == 0 else None)


def from_main(value: T) -> T:
    """The main process's value, in every process: decisions must not depend on a process's rounding."""
    return gathered(lambda: value)[0]


def check_same(value: T, describe: Callable[[T, T], str]) -> None:
    """Raise ConfigError in every process if the value of any differs from the main process's."""
    values = gathered(lambda: value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise ConfigError(
                f"process {number} differs from process 0: {describe(values[0], other)}; give every process the same "
                "arguments, weights included, and an `out` that all can read"
            )


@torch.no_grad()
def sum_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Replace the gradient of each weight by its sum over all processes.

    A process whose share was empty adds zeros. A weight without a gradient in every process keeps none: the
    optimizer skips it, as it would in a single process.
    """
    if process_count() == 1:
        return
    present = torch.tensor([weight.grad is not None for weight in weights], device=weights[0].device, dtype=torch.int32)
    distributed.all_reduce(present)
    for bucket in _buckets([weight for weight, count in zip(weights, present.tolist(), strict=True) if count]):
        _sum_bucket(bucket)


def _buckets(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Consecutive weights of the same dtype, up to BUCKET_VALUES values per bucket."""
    buckets: list[list[nn.Parameter]] = []
    held = 0
    for weight in weights:
        if not buckets or weight.dtype != buckets[-1][0].dtype or held + weight.numel() > BUCKET_VALUES:
            buckets.append([])
            held = 0
        buckets[-1].append(weight)
        held += weight.numel()
    return buckets


def _sum_bucket(bucket: Sequence[nn.Parameter]) -> None:
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in bucket]
    flat: Tensor = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for weight, gradient, total in zip(
        bucket, gradients, flat.split([weight.numel() for weight in bucket]), strict=True
    ):
        gradient.copy_(total.view_as(gradient))
        weight.grad = gradient
