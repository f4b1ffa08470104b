"""Server outages: how long clients retry, and whether a server currently answers.

MLflow's and Prefect's clients retry a request without an answer with exponential backoff. The number of retries is set
here for every process of a run; a variable that is already set is left unchanged. Work on Label Studio is repeated as a
whole, since all of it is idempotent. When the retries are exhausted the run ends, the same command resumes it, and
`flows.failures` says so in the error message.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx

from flows.disk import disk_shown, full_disk, home_or_here, in_background, nearly_full
from labeling.errors import ServerUnavailable

if TYPE_CHECKING:
    from labeling.server.client import LabelStudio  # its library is slow to import, and the CLI imports this module

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE, PATIENCE_SECONDS = "RLHF_PATIENCE_SECONDS", 480.0
PROBE_SECONDS = 3.0
POLL_SECONDS, DISK_SECONDS = 5.0, 1.0
INTERRUPTIONS = 10  # of one piece of work; a server that disconnects more often has another fault
RETRIES = {
    # waits of 0, 2, 4, ... 64 and three of 120 s; a request that got no answer is repeated as well
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # waits of 2, 4, ... 256 s
    "PREFECT_CLIENT_MAX_RETRIES": "8",
}
FOR_QUERIES = {  # of a command that somebody waits for
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "PREFECT_CLIENT_MAX_RETRIES": "1",
    "PREFECT_API_REQUEST_TIMEOUT": "20",
}
NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


def retries() -> dict[str, str]:
    """Environment variables that make the clients of MLflow and Prefect retry for about eight minutes."""
    return {name: os.environ.get(name, value) for name, value in RETRIES.items()}


def for_queries() -> dict[str, str]:
    """Environment variables that make the clients of MLflow and Prefect give up within a minute."""
    return {name: os.environ.get(name, value) for name, value in FOR_QUERIES.items()}


def through_outages(label_studio: "LabelStudio", work: Callable[[], T]) -> T:
    """Return the result of `work`; after an outage of Label Studio, wait until it is back and repeat the work.

    The work must be idempotent: a request may have been executed although its response was lost. Raises
    ServerUnavailable when the outage lasts longer than RLHF_PATIENCE_SECONDS, eight minutes by default.
    """
    for _ in range(INTERRUPTIONS):
        try:
            return work()
        except ServerUnavailable as error:
            wait_until_back(label_studio, error)
    return work()


def wait_until_back(label_studio: "LabelStudio", error: ServerUnavailable) -> None:
    """Poll until Label Studio answers again. Raises ServerUnavailable when that takes too long, and MachineFault at
    once if the disk is full, which no waiting changes."""
    if nearly_full(home_or_here()):
        raise full_disk(home_or_here(), str(error)) from error
    patience, started = float(os.environ.get(PATIENCE, PATIENCE_SECONDS)), time.monotonic()
    log.warning("%s Retrying for %.0f minutes", error, patience / 60)
    while (elapsed := time.monotonic() - started) < patience:
        try:
            label_studio.whoami()
        except ServerUnavailable:
            time.sleep(min(POLL_SECONDS, max(patience - elapsed, 0.0)))
        else:
            log.info("Label Studio is back after %.0f s", elapsed)
            return
    raise ServerUnavailable(
        label_studio.url, f"for {patience / 60:.1f} minutes; what was judged is kept, the same command resumes"
    ) from error


@contextmanager
def without_retries() -> Iterator[None]:
    """Disable MLflow's retries and shorten its timeout within the block: for a process that is about to exit."""
    before = {name: os.environ.get(name) for name in NO_RETRIES}
    os.environ.update(NO_RETRIES)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def watched_disk(path: Path) -> Iterator[None]:
    """Disable MLflow's retries within the block while the disk is full: waiting for its server does not help then."""

    def watch(ended: threading.Event) -> None:
        while not ended.wait(DISK_SECONDS):
            if nearly_full(path):
                log.warning("only %s: free some space", disk_shown(path))
                with without_retries():
                    while nearly_full(path) and not ended.wait(DISK_SECONDS):
                        pass

    with in_background(watch, "disk"):
        yield


def mlflow_answers(uri: str) -> bool:
    """Whether MLflow's server at the tracking `uri` answers now; a store that is a file always does.

    Takes a few seconds at most. Any status below 500 counts, so that a gateway without `/health` is not an outage.
    """
    if not uri.startswith("http"):
        return True
    try:
        return httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).status_code < 500
    except httpx.HTTPError:
        return False
