"""Progress of a stage as bars on the page of its flow run. A bar that cannot be drawn stops nothing."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from alignment.progress import Report, listen

log = logging.getLogger(__name__)


class Bars:
    """Progress artifacts of a stage, one for each of its long steps; updated by the thread that reports."""

    def __init__(self) -> None:
        self._ids: dict[str, UUID] = {}

    def show(self, report: Report) -> None:
        """Draw what is reported; nothing outside of a flow run, or of a step whose size is not known."""
        if report.share is None or not flow_run.id:
            return
        try:
            self._draw(report.name, 100 * min(1.0, report.share), report.line)
        except (httpx.HTTPError, OSError, PrefectException) as error:
            log.debug("the progress of %s could not be shown on the flow run's page: %s", report.name, error)

    def _draw(self, name: str, percent: float, line: str) -> None:
        if name in self._ids:
            update_progress_artifact(self._ids[name], percent, line)
        else:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress-{name}".lower()).strip("-")
            self._ids[name] = cast(UUID, create_progress_artifact(percent, key=key, description=line))

    def fill(self) -> None:
        """Show that all steps are finished."""
        for name in self._ids:
            self.show(Report(name, 1.0, f"{name}: finished"))


@contextmanager
def shown_progress() -> Iterator[None]:
    """A context whose long steps have bars on the page of the flow run."""
    bars = Bars()
    with listen(bars.show):
        yield
    bars.fill()
