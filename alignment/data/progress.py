"""Progress of long steps: a bar in a terminal, and lines with rate and time left in the log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0
UNITS = {"B": (1e6, "MB")}


class Progress:
    """Counts what is done of a step; `total` is None if it is not known."""

    def __init__(self, name: str, total: float | None, unit: str, bar: "tqdm[object]") -> None:
        self._name, self._total, self._bar = name, total, bar
        self._size, self._unit = UNITS.get(unit, (1.0, unit))
        self._start = self._logged = time.monotonic()
        self._done = self._first = 0.0

    def skip(self, amount: float) -> None:
        """Count what an earlier run did, which says nothing of the rate."""
        self._first += amount
        self.add(amount)

    def add(self, amount: float) -> None:
        """Count what was done."""
        self._done += amount
        self._bar.update(amount)
        if time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("%s", self.line())

    def line(self) -> str:
        """What is done, at which rate, and what is left."""
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-9)
        of = "" if self._total is None else f" of {self._total / self._size:,.0f}"
        text = f"{self._name}: {self._done / self._size:,.0f}{of} {self._unit}, {rate / self._size:,.3g} {self._unit}/s"
        if self._total is None or not rate:
            return text
        return f"{text}, {_duration(max(0.0, self._total - self._done) / rate)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@contextmanager
def progress(name: str, total: float | None, unit: str) -> Iterator[Progress]:
    """Show the progress of a step of `total` units, bytes ("B") or others."""
    with tqdm(desc=name, total=total, unit=unit, unit_scale=True, disable=None) as bar:
        yield Progress(name, total, unit, bar)
