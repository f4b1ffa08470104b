"""Precision and recomputation: less memory and time per token, with the same losses.

bfloat16 is used in forwards: matrix products run in it (autocast), while trained weights, optimizer state,
log-probabilities and losses are float32. Frozen models keep their precision.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.distributed.devices import has_bfloat16, no_bfloat16
from alignment.errors import ConfigError
from alignment.models.logprobs import current_narrowing
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


def recompute_layers(model: PreTrainedModel) -> None:
    """Save only the inputs of the trunk's layers, and recompute each layer in the backward pass.

    transformers' own switch acts in train mode only, where dropout would act too, and here no dropout may: old and new
    log-probabilities must come from the same function. So the layers stay in eval mode and are wrapped individually.
    """
    layers = [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no layers that transformers could recompute: set gradient_checkpointing to "
            "false, and lower micro_batch_tokens where memory is short"
        )
    for layer in layers:
        setattr(layer, "forward", partial(_recomputed, layer.forward))  # noqa: B010  (a method, to mypy)


def _recomputed(forward: Any, *args: Any, **options: Any) -> Any:
    """A forward of which only the inputs are saved for the backward pass. It must be deterministic."""
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), current_narrowing()),
        **options,
    )
