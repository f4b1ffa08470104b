"""A GPU that is only pretended: tensors that say they are on `cuda`, and whose numbers are on the CPU.

PyTorch's FakeTensorMode does the same for shapes alone; sampling and the trainers look at values, so these have some.
Every operation with tensors of both devices is an error, as it is on a GPU (but for numbers without dimensions, and for
copies), and so is a generator of the other device. Operations on an index of the other device, which a GPU would allow
and wait for, are errors too.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from transformers import PreTrainedModel

GPU = torch.device("meta")
CPU = torch.device("cpu")
aten = torch.ops.aten
MOVE = PreTrainedModel.to
LOAD = PreTrainedModel.from_pretrained.__func__
MOVES = {aten._to_copy.default, aten.copy_.default}


class OnGPU(Tensor):
    """A tensor that says it is on the GPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnGPU":
        self = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=GPU
        )
        self.numbers = numbers
        return self

    def tolist(self) -> Any:
        """The numbers, which PyTorch would not read from a tensor of another type."""
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(operation, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Generator(torch.Generator):
    """A generator that says it is on the device it was made for."""

    on_gpu: ClassVar[set[int]] = set()  # by address: an operation gets another object of the same generator

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        if torch.device(device) == GPU:
            self.on_gpu.add(self._cdata)
        else:
            self.on_gpu.discard(self._cdata)


class PretendedGPU(TorchDispatchMode):
    """Inside, what is made on `cuda` or moved there says it is there."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return perform(operation, args, kwargs or {})


def perform(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do it on the CPU, and say that what comes of it is where the tensors of it were."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = any(isinstance(leaf, OnGPU) for leaf in leaves)
    if kwargs.get("device") is not None:  # something new, or a copy
        on_gpu = torch.device(kwargs["device"]) == GPU
        kwargs = {**kwargs, "device": CPU}
    elif operation not in MOVES:
        check(operation, args, kwargs, on_gpu)
    plain_args, plain_kwargs = tree_map_only(OnGPU, lambda tensor: tensor.numbers, (args, kwargs))
    found = operation(*plain_args, **plain_kwargs)
    if (operation is aten._to_copy.default and not on_gpu) or (not leaves and not on_gpu):
        return found
    written = {id(p): w for p, w in zip(tree_leaves(plain_args), tree_leaves(args), strict=True)}

    def pretend(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return written.get(id(value)) if id(value) in written else OnGPU(value) if on_gpu else value

    wrapped = tree_map(pretend, found)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped) if on_gpu else wrapped


def check(operation: Any, args: Any, kwargs: dict[str, Any], on_gpu: bool) -> None:
    """Raise where something of the operation stayed behind."""
    for leaf in tree_leaves((args, kwargs)):
        behind = isinstance(leaf, Tensor) and leaf.dim() > 0 and isinstance(leaf, OnGPU) != on_gpu
        if behind:
            raise RuntimeError(f"{operation}: a tensor of shape {tuple(leaf.shape)} is not where the others are")
        if isinstance(leaf, torch._C.Generator) and (leaf._cdata in Generator.on_gpu) != on_gpu:
            raise RuntimeError(f"{operation}: the generator is not where the tensors are")


def tensor(make: Any, data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """torch.tensor, which would leave the numbers away on this device."""
    return make(data, **options).to(device)


def from_pretrained(load: Any, cls: type[PreTrainedModel], *args: Any, **options: Any) -> PreTrainedModel:
    """transformers fills models that are on `meta` for a moment, which is not pretended."""
    with _disable_current_modes():
        return load(cls, *args, **options)


def moved(move: Any, model: PreTrainedModel, *args: Any, **options: Any) -> PreTrainedModel:
    """The model with new weights, as those of another type cannot take their place; tied ones are tied again.

    A model that is there already keeps its weights: an optimizer may have them.
    """
    if args == (GPU,) and all(isinstance(weight.data, OnGPU) for weight in model.parameters()):
        return model
    move(model, *args, **options)
    model.tie_weights()
    return model


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """The pretended device, for as long as it is there."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with (
            patch.object(PreTrainedModel, "from_pretrained", classmethod(partial(from_pretrained, LOAD))),
            patch.object(PreTrainedModel, "to", lambda *args, **options: moved(MOVE, *args, **options)),
            patch("torch.Generator", Generator),
            patch("torch.tensor", partial(tensor, torch.tensor)),
            patch("torch.autocast", lambda *_, **__: nullcontext()),
            patch("torch.is_autocast_enabled", lambda *_: False),
            patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["cpu", GPU.type]),
            patch("torch.__future__.get_overwrite_module_params_on_conversion", lambda: True),
            patch("alignment.distributed.devices.device", lambda: GPU),
            patch.dict("os.environ", ACCELERATE_TORCH_DEVICE=GPU.type),  # where TRL's trainers work
            PretendedGPU(),
        ):
            yield GPU
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
