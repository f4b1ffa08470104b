"""NaN and infinities in weights, which are refused wherever weights are loaded."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment.errors import CheckpointError
from alignment.models.checkpoint_files import count_tensors


def check_finite(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for NaN or an infinity in weights."""
    for name, weight in weights.items():
        if not weight.is_floating_point() or not weight.numel():
            continue
        low, high = torch.aminmax(weight if weight.element_size() > 1 else weight.float())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(
                f"{path} has NaN or an infinity in {name}, so it can compute nothing: take another checkpoint"
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError if it cannot be read, or not all are finite."""
    count_tensors(path)
    weights = load_file(path)
    check_finite(weights, path)
    return weights
