"""Attention in bfloat16 with float32 within: where it applies, and that values and gradients are attention's."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from alignment.models.attention import FEWEST_TOKENS, attend, is_faster_in_float32, register_attention


def states(tokens: int = 5, dtype: torch.dtype = torch.float32, *, learns: bool = True) -> list[Tensor]:
    """Query, key and value of 2 rows and 2 heads of 4."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, tokens, 4, generator=generator).to(dtype).requires_grad_(learns) for _ in range(3)]


def test_float32_is_used_for_short_rows_with_a_backward_in_bfloat16_alone() -> None:
    half = torch.bfloat16
    assert is_faster_in_float32(*states(dtype=half))
    assert not is_faster_in_float32(*states())
    assert not is_faster_in_float32(*states(dtype=half, learns=False))
    assert is_faster_in_float32(*states(FEWEST_TOKENS - 1, half))
    assert not is_faster_in_float32(*states(FEWEST_TOKENS, half))
    with torch.no_grad():
        assert not is_faster_in_float32(*states(dtype=half))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_faster_in_float32(*states())
        assert is_faster_in_float32(states()[0].detach(), *states()[1:])  # an adapter that trains the values alone
    with torch.autocast("cpu", torch.float16):
        assert not is_faster_in_float32(*states())


@pytest.mark.parametrize("mask", [False, True])
def test_values_and_gradients_are_those_of_the_formula(mask: bool) -> None:
    """softmax(q kᵀ / √d) v of each position over those before it, with autocast on; the output is in bfloat16."""
    query, key, value = states()
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    if mask:
        allowed[:, 0] = False
        allowed[0, 0] = True
    bias = torch.zeros(5, 5).masked_fill(~allowed, -math.inf)
    module = nn.Module()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attend(module, query, key, value, bias.to(torch.bfloat16)[None, None] if mask else None)
    assert output.dtype == torch.bfloat16
    expected = torch.softmax(query @ key.transpose(2, 3) / 2 + bias, -1) @ value
    torch.testing.assert_close(output.float(), expected.transpose(1, 2), atol=0.01, rtol=0.01)  # (b, t, heads, d)
    weights = torch.linspace(-1, 1, output.numel()).to(torch.bfloat16).float().view(output.shape)
    found = torch.autograd.grad((output * weights).sum(), [query, key, value])
    wanted = torch.autograd.grad((expected.transpose(1, 2) * weights).sum(), [query, key, value])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # bfloat16 would differ by 1e-3


def test_models_use_it() -> None:
    register_attention()
    assert AttentionInterface()["sdpa"] is attend
