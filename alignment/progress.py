"""Progress of long steps: a bar in a terminal, and lines with rate and time left in the log."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0  # between two lines of the log
UNITS = {"B": (1e6, "MB")}


class Progress:
    """Counts what is done of a step in units, bytes ("B") or others; `total` is None if it is not known.

    Of several processes the first one shows it.
    """

    def __init__(self, name: str, total: float | None, unit: str = "steps") -> None:
        self._name, self._total = name, total
        self._size, self._unit = UNITS.get(unit, (1.0, unit))
        self._start = self._logged = time.monotonic()
        self._done = self._first = 0.0
        self._shown = os.environ.get("RANK", "0") == "0"
        self._bar: tqdm[object] = tqdm(
            desc=name, total=total, unit=unit, unit_scale=unit in UNITS, disable=None if self._shown else True
        )

    def skip(self, amount: float) -> None:
        """Count what an earlier run did, which says nothing of the rate."""
        self._first += amount
        self._done += amount
        self._bar.update(amount)

    def add(self, amount: float) -> None:
        """Count what was done."""
        self._done += amount
        self._bar.update(amount)
        if self._shown and time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("%s", self.line())

    def reach(self, done: float) -> None:
        """Count up to `done`."""
        self.add(done - self._done)

    def line(self) -> str:
        """What is done, at which rate, and what is left."""
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        of = "" if self._total is None else f" of {self._total / self._size:,.0f}"
        text = f"{self._name}: {self._done / self._size:,.0f}{of} {self._unit}, {rate / self._size:,.3g} {self._unit}/s"
        if self._total is None or not rate:
            return text
        return f"{text}, {duration(max(0.0, self._total - self._done) / rate)} left"

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


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
