"""Models sharded over the processes of a run (FSDP2): each keeps a shard of every weight, gradient and optimizer state.

`compute.shard`, or `accelerate launch --config_file deploy/accelerate/fsdp.yaml` for a script, enables it. Only trained
models are sharded; every process holds frozen models whole. It serves the training loops of this package, pretraining,
reward model and PPO; TRL's trainer is sharded by accelerate. What differs from unsharded models is all in this file:

- In the update FSDP gathers the weights layer by layer, forward and backward, and reduces gradients over processes.
  They are summed, not averaged: each loss is already divided by the size of the whole batch.
- Every forward and backward of the update is therefore a collective, and all processes must run equally many: a process
  with fewer micro-batches appends idle ones, whose losses and gradients are 0.
- Inference has no collectives, as each process samples for as long as its own responses need. For rollouts, held-out
  losses and publishing, the weights are gathered into a plain model beside the sharded one, and freed afterwards.
- A checkpoint holds whole tensors, so that any number of processes can resume from it.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.distributed.collectives import OutOfStep, gathered, process_count, process_index
from alignment.errors import ConfigError

B = TypeVar("B")
# Settings of the launcher that would be ignored silently, and what to do instead.
REFUSED = {
    "FSDP_OFFLOAD_PARAMS": "weights stay on their device: set fsdp_offload_params to false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "every process loads the same weights: set fsdp_cpu_ram_efficient_loading to "
    "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "set fsdp_activation_checkpointing to false, and the stage's "
    "gradient_checkpointing to true",
}


def _setting(name: str, default: str = "false") -> str:
    return os.environ.get(name, default).lower()


def enabled() -> bool:
    """Whether there are several processes, and the launcher enables FSDP."""
    return process_count() > 1 and _setting("ACCELERATE_USE_FSDP") == "true"


def shard_trainers_on_cpu() -> None:
    """Have accelerate shard TRL's trainers over processes on a CPU too, which it does for accelerators alone."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def sum_without_nccl(model: nn.Module) -> None:
    """Have a model that accelerate sharded average its gradients by a sum, since only NCCL knows averages."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


def split(*groups: Sequence[PreTrainedModel]) -> "Shards | None":
    """Shard the models in place if that is enabled, those of a group as one unit; None otherwise."""
    if not enabled():
        return None
    for problem in _problems(groups):
        raise ConfigError(problem)
    return Shards(groups)


def _problems(groups: Iterable[Sequence[PreTrainedModel]]) -> Iterator[str]:
    if _setting("FSDP_VERSION", "2") != "2":
        yield "FSDP version 1 is not supported: set fsdp_version to 2, as in deploy/accelerate/fsdp.yaml"
    for name, remedy in REFUSED.items():
        if _setting(name) == "true":
            yield f"{name} is true: {remedy}, as in deploy/accelerate/fsdp.yaml"
    if any(".lora_" in name for group in groups for model in group for name, _ in model.named_parameters()):
        yield (
            "adapters cannot run under FSDP, and would gain little: their gradients and optimizer state are small. Set "
            "compute.shard to false (in a script, launch it with deploy/accelerate/ddp.yaml), or train whole models"
        )


class _Root(nn.Module):
    """Models that are sharded as one unit. FSDP hooks into a forward, so whatever uses them runs in this module's."""

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


@dataclass(frozen=True, eq=False)
class _Part:
    """This process's shard of some models, and plain copies of them, which are empty until `fill`."""

    root: _Root
    plain: _Root

    @classmethod
    def of(cls, models: Sequence[PreTrainedModel], mesh: DeviceMesh) -> "_Part":
        root = _Root(models)
        placeholders = {id(w): nn.Parameter(w.detach().new_empty(0), requires_grad=False) for w in root.parameters()}
        plain = copy.deepcopy(root, dict[int, Any](placeholders)).eval()
        reshard = _setting("FSDP_RESHARD_AFTER_FORWARD", "true") != "false"
        for layer in reversed(list(root.modules())):  # inner modules first
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(root, mesh=mesh)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # else a scaled sum, which only NCCL supports
        return cls(root, plain)

    @torch.no_grad()
    def fill(self) -> None:
        for weight, part in zip(self.plain.parameters(), self.root.parameters(), strict=True):
            weight.data = whole_tensor(part)

    def empty(self) -> None:
        for weight in self.plain.parameters():
            weight.data = weight.data.new_empty(0)


class Shards:
    """The trained models of a run, each weight sharded by rows over all processes."""

    def __init__(self, groups: Sequence[Sequence[PreTrainedModel]]) -> None:
        mesh = init_device_mesh(groups[0][0].device.type, (process_count(),))
        self.parts: dict[PreTrainedModel, _Part] = {}
        self.plain: dict[PreTrainedModel, PreTrainedModel] = {}
        for models in groups:
            part = _Part.of(models, mesh)
            for model, plain in zip(models, part.plain.models, strict=True):
                assert isinstance(plain, PreTrainedModel)
                self.parts[model], self.plain[model] = part, plain


@contextmanager
def whole_models(shards: Shards | None, *models: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, ...]]:
    """The models, for inference: where they are sharded, plain models that hold all weights within the context.

    A collective on entry and exit: all processes must call it, and an error in one of them raises in all.
    """
    if shards is None:
        yield models
        return
    parts = list(dict.fromkeys(shards.parts[model] for model in models))
    failure: Exception | None = None
    with _in_step():
        for part in parts:
            part.fill()
    try:
        yield tuple(shards.plain[model] for model in models)
    except Exception as error:
        failure = error
    finally:
        for part in parts:
            part.empty()
    gathered(_raise, failure)


def whole(shards: Shards | None, model: PreTrainedModel) -> PreTrainedModel:
    """The model after its training: where it is sharded, a plain model that holds all weights. A collective."""
    if shards is None:
        return model
    with _in_step():
        shards.parts[model].fill()
    return shards.plain[model]


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def add_gradients(
    shards: Shards | None,
    model: PreTrainedModel,
    batches: Sequence[B],
    loss_of: Callable[[B], Tensor],
    idle: B,
) -> None:
    """Add the gradients of each batch's loss, which is computed with `model`.

    With a sharded model all processes must call it, and run as many rounds as the process with the most batches; the
    others repeat `idle`, a batch that uses all weights and whose loss is 0.
    """
    if shards is None:
        for batch in batches:
            loss_of(batch).backward()
        return
    with _in_step():
        rounds = max(gathered(len, batches))
        for batch in [*batches, *[idle] * (rounds - len(batches))]:
            shards.parts[model].root(partial(loss_of, batch)).backward()


@contextmanager
def _in_step() -> Iterator[None]:
    """Raise OutOfStep for an error during collectives: the other processes wait for this one and cannot be notified."""
    try:
        yield
    except Exception as error:
        raise OutOfStep(
            f"{type(error).__name__}: {error} (in a collective operation; if this is not the first error, see "
            "those of the other processes)"
        ) from error


def whole_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded. A collective: all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_main(state: Any) -> Any:
    """Nested dicts and lists with their sharded tensors gathered on the CPU of the main process; empty elsewhere."""

    def gather(part: DTensor) -> Tensor:
        full = part.full_tensor()
        return full.cpu() if process_index() == 0 else full.new_empty(0)

    return tree_map_only(DTensor, gather, state)


def whole_state(model: nn.Module) -> dict[str, Tensor] | None:
    """The weights of a model that accelerate sharded, on the CPU of the main process; tied ones have one name.

    None where nothing is sharded. A collective.
    """
    if not enabled():
        return None
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = names - {name for name, _ in model.named_parameters()}
    state: dict[str, Tensor] = whole_on_main({n: t for n, t in model.state_dict().items() if n not in tied})
    return state


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a full tensor if `like`, of the same shape, is sharded; else the tensor itself."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def part_of_optimizer(state: dict[str, Any], weights: Iterable[Tensor]) -> dict[str, Any]:
    """This process's shard of an optimizer's full state over these weights."""
    sharded = list(weights)
    parts = {
        number: {name: part_of(value, sharded[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": parts}
