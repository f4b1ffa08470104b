"""Work on the processor's cores: a function applied to many items in processes of their own, the results in order."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import chain, islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def ordered_map(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """The results of a function that can be pickled, in order, computed ahead by one process for each core.

    Few items are in memory at a time. A single item, and all of them on a single core, are worked on in this process.
    """
    waiting = iter(items)
    first = list(islice(waiting, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    from loky import ProcessPoolExecutor, cpu_count

    cores = cpu_count()
    if cores == 1:
        yield from map(function, chain(first, waiting))
        return
    executor = ProcessPoolExecutor(max_workers=cores, initializer=_follow, initargs=(os.getpid(),))
    try:
        pending: deque[Future[ResultT]] = deque()
        for item in chain(first, waiting):
            pending.append(executor.submit(function, item))
            if len(pending) > cores + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _follow(parent: int) -> None:
    """End this process with the one that started it, which may be killed without a chance to do that itself."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
