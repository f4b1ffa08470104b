"""Equality but for rounding: sums in another order, by other kernels, processors or threads, differ a little."""

from collections.abc import Sequence

from torch import Tensor


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
