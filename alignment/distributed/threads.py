"""Two jobs at a time on the CPU, each with half of the threads.

The products of a small model are too small to share out well: two threads on one of them are slower than one
thread on each of two. So PPO's policy and value model learn side by side, which have nothing in common that is written,
and elsewhere the two halves of a batch. Their results are added up in the order of the jobs, whichever ends first: with
the same number of threads a run is repeated to the bit. With another number sums may be rounded otherwise.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")

_helper = ThreadPoolExecutor(1, thread_name_prefix="side-by-side")


def side_by_side(here: Callable[[], A], beside: Callable[[], B], device: torch.device) -> tuple[A, B]:
    """What both jobs return; `beside` runs in a second thread where there are two threads of a CPU to share.

    The jobs must not write to the same tensors. Autograd's modes are those of a thread: a job that needs no gradients
    says so itself. Both have ended when this returns or raises, the first job's error before the second's.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads < 2:
        return here(), beside()
    second = _helper.submit(_with_threads, threads // 2, beside)
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
    """This thread's products shared out over so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
