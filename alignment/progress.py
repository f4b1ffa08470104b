"""Progress of long steps: a bar in a terminal, and lines with rate and time left in the log.

A line comes at least every LOG_SECONDS, also while a single step takes longer: then it says for how long. Whoever
started the work may `listen` to the same reports.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass

from tqdm import tqdm

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0  # between two lines of the log
SLOW = 0.1  # units in a second; below, the seconds of a unit are shown
UNITS = {"B": (1e6, "MB")}


@dataclass(frozen=True)
class Report:
    """What is done: the step's name, the share that is done (None if the whole is not known), and a line of text."""

    name: str
    share: float | None
    line: str


_listener: ContextVar[Callable[[Report], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listen(listener: Callable[[Report], None]) -> Iterator[None]:
    """A context whose progress is also reported to `listener`, by another thread."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Progress:
    """Counts what is done of a step in units, bytes ("B") or others; `total` is None if it is not known.

    Of several processes the first one shows it.
    """

    def __init__(self, name: str, total: float | None, unit: str = "steps") -> None:
        self._name, self._total = name, total
        self._size, self._unit = UNITS.get(unit, (1.0, unit))
        self._start = self._logged = self._added = time.monotonic()
        self._done = self._first = 0.0
        self._values = ""
        self._shown = os.environ.get("RANK", "0") == "0"
        self._bar: tqdm[object] = tqdm(
            desc=name, total=total, unit=unit, unit_scale=unit in UNITS, disable=None if self._shown else True
        )
        self._closed = threading.Event()
        if self._shown:
            watch = (copy_context().run, _watch, weakref.ref(self), self._closed)  # the context is that of the flow run
            threading.Thread(target=watch[0], args=watch[1:], name=f"progress-{name}", daemon=True).start()

    def skip(self, amount: float) -> None:
        """Count what an earlier run did, which says nothing of the rate."""
        self._first += amount
        self._done += amount
        self._bar.update(amount)

    def add(self, amount: float) -> None:
        """Count what was done."""
        self._done += amount
        self._added = time.monotonic()
        self._bar.update(amount)
        self.log_if_due()

    def reach(self, done: float) -> None:
        """Count up to `done`."""
        self.add(done - self._done)

    def describe(self, values: str) -> None:
        """Show these values beside what is done, such as the last reward."""
        self._values = values
        self._bar.set_postfix_str(values)

    def line(self) -> str:
        """What is done, at which rate, and what is left."""
        of = "" if self._total is None else f" of {self._total / self._size:,.0f}"
        parts = [f"{self._name}: {self._done / self._size:,.0f}{of} {self._unit}", *self._rate()]
        silent = time.monotonic() - self._added
        if silent > LOG_SECONDS > 0:
            parts.append(f"the next since {duration(silent)}")
        return ", ".join([*parts, *([self._values] if self._values else [])])

    def _rate(self) -> Iterator[str]:
        """The rate of this run, and the time that the rest takes at it."""
        done = self._done - self._first
        rate = done / max((self._added if done else time.monotonic()) - self._start, 1e-9)
        if rate / self._size >= SLOW or not rate:
            yield f"{rate / self._size:,.3g} {self._unit}/s"
        else:
            yield f"{duration(self._size / rate)} each"
        if self._total is not None and rate:
            yield f"{duration(max(0.0, self._total - self._done) / rate)} left"

    def report(self) -> Report:
        """What is done so far."""
        return Report(self._name, self._done / self._total if self._total else None, self.line())

    def log_if_due(self) -> None:
        """Log a line if the last one is old enough."""
        if self._shown and time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("%s", self.line())

    def close(self) -> None:
        """Remove the bar."""
        self._closed.set()
        self._bar.close()


def _watch(of: "weakref.ref[Progress]", closed: threading.Event) -> None:
    """Log what is due while nothing is counted, and report to the listener, for which the work does not wait.

    Ends with the progress, also where an error has kept it from being closed.
    """
    listener = _listener.get()
    while not closed.wait(max(LOG_SECONDS, 1.0) / 2):
        progress = of()
        if progress is None:
            return
        progress.log_if_due()
        if listener is not None:
            listener(progress.report())
        del progress


def duration(seconds: float) -> str:
    """A time in a suitable unit."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextmanager
def progress(name: str, total: float | None, unit: str) -> Iterator[Progress]:
    """A context that shows the progress of a step."""
    shown = Progress(name, total, unit)
    try:
        yield shown
    finally:
        shown.close()


def steps(name: str, done: int, total: int) -> Iterator[int]:
    """The steps after `done`, from 1 to `total`, with their progress shown."""
    with progress(name, total, "steps") as shown:
        shown.skip(done)
        for step in range(done + 1, total + 1):
            yield step
            shown.add(1)
