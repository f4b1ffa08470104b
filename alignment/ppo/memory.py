"""What a run computes in and what it recomputes: less memory and time a token, with the same losses.

bfloat16 is for forwards: matrix products run in it (autocast), while trained weights, optimizer state,
log-probabilities and losses are float32. Frozen models stay in the precision they were given in.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.errors import ConfigError
from alignment.models.logprobs import current_narrowing
from alignment.ppo.config import PPOConfig

HALF = (torch.float16, torch.bfloat16)


def computing(config: PPOConfig, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward. Never of a backward, nor of an optimizer step: it keeps converted weights."""
    return torch.autocast(device.type, torch.bfloat16) if config.bfloat16 else nullcontext()


def computes_in_half(policy: PreTrainedModel, config: PPOConfig) -> bool:
    """Whether one token at a time and a whole forward would differ by more than single precision's rounding."""
    return config.bfloat16 or policy.dtype in HALF


def check_bfloat16(policy: PreTrainedModel) -> None:
    """Refuse bfloat16 where it would do nothing or would only cost time."""
    if policy.dtype == torch.float64:
        raise ConfigError(
            "the policy is in float64, which bfloat16 does not touch: load it in float32, or set bfloat16 to false"
        )
    if not has_bfloat16(policy.device):
        raise ConfigError(
            f"bfloat16 is true and {policy.device} has no bfloat16 arithmetic (on CPUs that is avx512_bf16 or "
            "amx_bf16); emulated, it is many times slower than float32: set bfloat16 to false, or use another machine"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor itself multiplies in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(on for name, on in torch.cpu.get_capabilities().items() if "bf16" in name)
    return bool(torch.amp.is_autocast_available(device.type))


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep the inputs of the trunk's layers alone, and compute each layer anew when its gradient is asked for.

    transformers' own switch acts in train mode only, where dropout would act too, and here no dropout may: old and new
    log-probabilities must come from the same function. So the layers stay in eval mode and are wrapped one by one.
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
    """forward(…), of which nothing but the inputs is kept for the gradient. Nothing in it is random."""
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
