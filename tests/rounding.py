"""Equality up to rounding: the order of sums, kernels, processors and threads change results slightly."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def assert_same_but_for_rounding(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """max |actual - expected| <= tolerance * max |expected|, tensor by tensor; raises AssertionError.

    The error of a sum goes with its largest terms, not with a result that happens to be near 0. So the scale is that
    of the whole tensor.
    """
    assert len(actual) == len(expected) > 0
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"tensor {number}: {a.shape} and {b.shape}"
        difference, scale = float((a - b).abs().max()), float(b.abs().max())
        assert difference <= tolerance * scale, f"tensor {number}: {difference:.2e} apart, its largest is {scale:.2e}"


def norms_in_double_precision() -> AbstractContextManager[object]:
    """Within it, Llama's norms of a model in double precision are computed in double precision.

    Transformers computes them in single precision whatever the model is in: a last bit of a double may tip a value over
    to the next single, which is 6e-8 of its size, and comparisons in double precision promise nothing any more.
    """
    return mock.patch.object(LlamaRMSNorm, "forward", _norm)


_norm_of_transformers = LlamaRMSNorm.forward


def _norm(self: LlamaRMSNorm, hidden: Tensor) -> Tensor:
    if hidden.dtype != torch.float64:
        return _norm_of_transformers(self, hidden)
    return functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)
