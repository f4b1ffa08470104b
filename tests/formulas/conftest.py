"""Tiny tensors: one thread is faster than several. All model parts are in double precision."""

from collections.abc import Iterator

import pytest
import torch

from tests.rounding import norms_in_double_precision

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Norms in double precision, so that 1e-9 holds on any processor."""
    with norms_in_double_precision():
        yield
