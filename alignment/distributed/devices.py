"""Where models do their work: the one place that reads the device, puts a model there and gives the memory back.

The environment variable RLHF_DEVICE says it for a whole process: `cpu` (also where it is not set), `cuda`, or `auto`,
which is the GPU where there is one. Models are put there as they are loaded, and every tensor beside them is made on
`model.device`. Random numbers that must not depend on the device (orders of rows, PPO's uniforms, new heads) are drawn
on the CPU and copied.
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
    """The device of this process; of several on one machine (LOCAL_RANK) each has the GPU of its number.

    Raises ConfigError for another value than `auto`, `cpu` and `cuda`, and for `cuda` where PyTorch sees no GPU.
    """
    choice = os.environ.get(VARIABLE, "cpu")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE} is '{choice}': set it to one of {', '.join(CHOICES)}")
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{VARIABLE} is 'cuda' and PyTorch {torch.__version__} sees no GPU: set it to 'auto' or 'cpu', or install "
            "a build of PyTorch with CUDA and look at `nvidia-smi`"
        )
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def to_device(model: M) -> M:
    """The same model, with its weights on the device of this process."""
    return model.to(device())


def release_memory() -> None:
    """Give the GPU memory of models that nobody holds any more back to the driver: for when a stage has ended.

    Trainers hold their model in a circle of references, which the garbage collector has to find first.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
