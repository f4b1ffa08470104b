"""Precision: less memory and time per token, with the same losses.

bfloat16 is used in forwards: matrix products run in it (autocast), while trained weights, optimizer state,
log-probabilities and losses are float32. Frozen models keep their precision.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from alignment.distributed.devices import has_bfloat16, no_bfloat16
from alignment.errors import ConfigError
from alignment.ppo.config import PPOConfig

HALF = (torch.float16, torch.bfloat16)


def computing(config: PPOConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward. Not for a backward or an optimizer step: autocast caches converted weights."""
    return torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext()


def computes_in_half(policy: PreTrainedModel, config: PPOConfig) -> bool:
    """Whether token-wise and full forwards may differ by more than the rounding of float32."""
    return config.bfloat16 or has_half_weights(policy)


def has_half_weights(model: PreTrainedModel) -> bool:
    """Whether any weight is in half precision."""
    return any(weight.dtype in HALF for weight in model.parameters())


def check_bfloat16(policy: PreTrainedModel) -> None:
    """Raise ConfigError if bfloat16 has no effect or would only be slower."""
    if policy.dtype == torch.float64:
        raise ConfigError(
            "the policy is in float64, which autocast does not convert: load it in float32, or set bfloat16 to false"
        )
    if not has_bfloat16(policy.device):
        raise ConfigError(
            f"bfloat16 is true and {no_bfloat16(policy.device)}: set bfloat16 to false, or use another machine"
        )
