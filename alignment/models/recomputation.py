"""Recomputation of layers in the backward pass: less memory, one more forward, and the same gradients."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.errors import ConfigError
from alignment.models.logprobs import current_narrowing


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
