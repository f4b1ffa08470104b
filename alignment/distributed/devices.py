"""Device and precision of a stage: where its models are, and in which numbers their matrix products are computed.

`Step.perform` enters `computing(compute)` with the recipe's options, and everything that a stage computes inside reads
them here: models are moved to `device()` when they are loaded, forwards of trained models run in `autocast()`, and
models that are not trained are loaded in `frozen_dtype()`. Outside of the context, as in a script that calls functions
of `alignment` itself, that is the CPU and float32. All other tensors are created on `model.device`.

Trained weights, optimizers, log-probabilities and losses are float32 whatever the precision. Random numbers that must
not depend on the device (orders of rows, PPO's uniforms, new heads) are drawn on the CPU and copied.

torch is imported by the functions: a stage that computes nothing does not need it.
"""

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from alignment.config.stages import ComputeConfig
from alignment.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

M = TypeVar("M", bound="nn.Module")

OUTSIDE = ComputeConfig(device="cpu", precision="float32")
_compute: ContextVar[ComputeConfig] = ContextVar("compute", default=OUTSIDE)


@contextmanager
def computing(compute: ComputeConfig) -> Iterator[None]:
    """A context with this device and precision. When it ends, also by an error, it releases the device's memory."""
    before = _compute.set(compute)
    try:
        check(compute)
        yield
    except BaseException as error:
        if "torch" in sys.modules and device().type != "cpu":
            _clear_frames(error)
        raise
    finally:
        _compute.reset(before)
        release_memory()


def check(compute: ComputeConfig) -> None:
    """Raise ConfigError for a device or a precision that this machine does not have."""
    if compute.device == "cuda" and not _has_gpu():
        import torch

        raise ConfigError(
            f"compute.device is 'cuda' and PyTorch {torch.__version__} finds no GPU: set it to 'auto' or 'cpu', or "
            "install a build of PyTorch with CUDA and check `nvidia-smi`"
        )
    if compute.precision == "bfloat16" and not has_bfloat16(device_of(compute)):
        raise ConfigError(
            f"compute.precision is 'bfloat16' and {no_bfloat16(device_of(compute))}: set it to 'auto' or 'float32', "
            "or use another machine"
        )


def device() -> "torch.device":
    """The device of this process; with several processes on a machine, the GPU whose number is LOCAL_RANK."""
    return device_of(_compute.get())


def frozen_dtype() -> "torch.dtype":
    """The dtype in which models are loaded that are not trained: bfloat16 if the precision is, else float32."""
    import torch

    compute = _compute.get()
    half = has_bfloat16(device()) if compute.precision == "auto" else compute.precision == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def in_bfloat16() -> bool:
    """Whether forwards of trained models run in bfloat16."""
    import torch

    return frozen_dtype() == torch.bfloat16


def autocast() -> AbstractContextManager[object]:
    """The context of a forward of a trained model. Not for its backward: autocast caches converted weights."""
    import torch

    return torch.autocast(device().type, torch.bfloat16) if in_bfloat16() else nullcontext()


def description() -> dict[str, str]:
    """Device and precision in use, and the name of the GPU."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name(device())} if device().type == "cuda" else {}
    return {"device": device().type, "precision": str(frozen_dtype()).removeprefix("torch."), **gpu}


def has_bfloat16(device: "torch.device") -> bool:
    """Whether the processor itself multiplies in bfloat16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)
    return bool(torch.amp.is_autocast_available(device.type))


def no_bfloat16(device: "torch.device") -> str:
    """Why a device is refused for bfloat16, for error messages."""
    return (
        f"{device} has no bfloat16 arithmetic (on CPUs that is avx512_bf16 or amx_bf16); emulated, it is many times "
        "slower than float32"
    )


def to_device(model: M) -> M:
    """The same model, moved to the device of this process."""
    return model.to(device())


def release_memory() -> None:
    """Release the memory of unreferenced models, on a GPU to the driver.

    Trainers keep their model in a reference cycle, which the garbage collector must collect first.
    """
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.empty_cache()


def device_of(compute: ComputeConfig) -> "torch.device":
    """The device that the options of a recipe mean on this machine."""
    import torch

    if compute.device == "cpu" or not _has_gpu():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def count_gpus() -> int:
    """The number of GPUs of this machine that PyTorch finds."""
    import torch

    return torch.cuda.device_count()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _clear_frames(error: BaseException) -> None:
    """Clear the variables of the functions that an error has left: they refer to models on the device."""
    chain: list[BaseException] = [error]
    for link in chain:
        traceback.clear_frames(link.__traceback__)
        chain += [other for other in (link.__cause__, link.__context__) if other is not None and other not in chain]
