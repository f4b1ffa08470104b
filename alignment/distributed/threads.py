"""Two jobs in parallel on the CPU, each with half of the threads.

The matrix products of a small model are too small to parallelize well: two threads on a single product are slower than
a thread on each of two. So PPO's policy and value model, which write no shared tensors, are trained in parallel, and
elsewhere the two halves of a batch. Results are summed in the order of the jobs, whichever ends first: with the same
number of threads a run is reproducible bit for bit. With another number the rounding of sums may differ.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")

_helper = ThreadPoolExecutor(1, thread_name_prefix="side-by-side")


def side_by_side(here: Callable[[], A], beside: Callable[[], B], device: torch.device) -> tuple[A, B]:
    """The results of both jobs; `beside` runs in a second thread on a CPU with at least two threads.

    The jobs must not write to the same tensors. Both see the device and the precision of the stage. Autograd's and
    autocast's modes are thread-local: a job without gradients must disable
    them itself. Both have ended when this returns or raises; the first job's error takes precedence.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2:
        return here(), beside()
    second = _helper.submit(copy_context().run, _with_threads, threads // 2, beside)
    try:
        with _threads(threads - threads // 2):
            first = here()
    except BaseException:
        second.exception()  # waits
        raise
    return first, second.result()


def _with_threads(count: int, job: Callable[[], B]) -> B:
    with _threads(count):
        return job()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A context in which this thread's operations use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
