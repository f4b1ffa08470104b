"""Progress of a long stage: a bar in a terminal, and its rate and the time left in the log."""

import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta

from tqdm import tqdm

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0  # between two lines of the log


class Progress:
    """The progress of `total` steps, of which `done` were done before. Of several processes the first one shows it."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self._name, self._total, self._first, self._done = name, total, done, done
        self._started = self._logged = time.monotonic()
        first = os.environ.get("RANK", "0") == "0"
        self._shown = first
        self._bar = tqdm(desc=name, total=total, initial=done, disable=None if first else True)

    def reach(self, step: int) -> None:
        """Show that `step` is done; the log has a line every LOG_SECONDS."""
        self._bar.update(step - self._done)
        self._done = step
        now = time.monotonic()
        if self._shown and now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.info("%s", self.line(now - self._started))

    def line(self, seconds: float) -> str:
        """The state after so many seconds of work: steps, rate and time left."""
        pace = seconds / max(1, self._done - self._first)
        left = timedelta(seconds=round(pace * (self._total - self._done)))
        rate = f"{1 / pace:.2g} steps a second" if 0 < pace < 1 else f"{pace:.3g} seconds a step"
        return f"{self._name}: step {self._done} of {self._total}, {rate}, about {left} left"

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def steps(name: str, done: int, total: int) -> Iterator[int]:
    """The steps after `done`, from 1 to `total`, with their progress shown."""
    progress = Progress(name, total, done)
    try:
        for step in range(done + 1, total + 1):
            yield step
            progress.reach(step)
    finally:
        progress.close()
