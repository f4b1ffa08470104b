"""Device placement: this module alone reads the device, moves models to it and releases its memory.

The environment variable RLHF_DEVICE sets the device of a process: `cpu` (the default), `cuda`, or `auto`, which is the
GPU if there is one. Models are moved there when they are loaded, and all other tensors are created on `model.device`.
Random numbers that must not depend on the device (orders of rows, PPO's uniforms, new heads) are drawn on the CPU and
copied.
"""

import gc
import os
from typing import TypeVar

import torch
from torch import nn

from alignment.errors import ConfigError

VARIABLE = "RLHF_DEVICE"
CHOICES = ("auto", "cpu", "cuda")

M = TypeVar("M", bound=nn.Module)


def device() -> torch.device:
    """The device of this process; with several processes on a machine, the GPU whose number is LOCAL_RANK.

    Raises ConfigError for a value other than `auto`, `cpu` and `cuda`, and for `cuda` if PyTorch finds no GPU.
    """
    choice = os.environ.get(VARIABLE, "cpu")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} is '{choice}': set it to one of {', '.join(CHOICES)}")
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{VARIABLE} is 'cuda' and PyTorch {torch.__version__} finds no GPU: set it to 'auto' or 'cpu', or install "
            "a build of PyTorch with CUDA and check `nvidia-smi`"
        )
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def to_device(model: M) -> M:
    """The same model, moved to the device of this process."""
    return model.to(device())


def release_memory() -> None:
    """Release the GPU memory of unreferenced models, after a stage.

    Trainers keep their model in a reference cycle, which the garbage collector must collect first.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
