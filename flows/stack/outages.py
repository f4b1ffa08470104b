"""A server that is away: how long its clients ask again, and whether it answers at this moment.

MLflow's and Prefect's clients repeat a request that found no server, each time after about twice as long. How often is
set here, for every process of a run; a variable that is already set is left as it is. Work on Label Studio is begun
again as a whole, for all of it first looks at what is there. After that the run ends in a state from which the same
command goes on, and `flows.failures` says so in words.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import httpx

from labeling.errors import ServerUnavailable

if TYPE_CHECKING:
    from labeling.server.client import LabelStudio  # its library is slow to import, and the CLI imports this module

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE, PATIENCE_SECONDS = "RLHF_PATIENCE_SECONDS", 480.0
PROBE_SECONDS = 3.0
POLL_SECONDS = 5.0
INTERRUPTIONS = 10  # of one piece of work; a server that breaks off more often has another fault
RETRIES = {
    # waits of 0, 2, 4, ... 64 and three of 120 s; a request that got no answer is repeated as well
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # waits of 2, 4, ... 256 s
    "PREFECT_CLIENT_MAX_RETRIES": "8",
}
NO_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


def retries() -> dict[str, str]:
    """Variables that make the clients of MLflow and Prefect ask for about eight minutes."""
    return {name: os.environ.get(name, value) for name, value in RETRIES.items()}


def through_outages(label_studio: "LabelStudio", work: Callable[[], T]) -> T:
    """What `work` returns; while Label Studio is away it is waited for, and the work is begun again.

    The work must look at what is there before it adds something: a request may have been carried out though its answer
    was lost. Raises ServerUnavailable when the server stays away for RLHF_PATIENCE_SECONDS, eight minutes by default.
    """
    for _ in range(INTERRUPTIONS):
        try:
            return work()
        except ServerUnavailable as error:
            wait_until_back(label_studio, error)
    return work()


def wait_until_back(label_studio: "LabelStudio", error: ServerUnavailable) -> None:
    """Ask until Label Studio answers again. Raises ServerUnavailable when that takes too long."""
    patience, started = float(os.environ.get(PATIENCE, PATIENCE_SECONDS)), time.monotonic()
    log.warning("%s It is asked again for %.0f minutes", error, patience / 60)
    while (away := time.monotonic() - started) < patience:
        try:
            label_studio.whoami()
        except ServerUnavailable:
            time.sleep(min(POLL_SECONDS, max(patience - away, 0.0)))
        else:
            log.info("Label Studio is back after %.0f s", away)
            return
    raise ServerUnavailable(
        label_studio.url, f"for {patience / 60:.1f} minutes; what was judged is kept, the same command goes on"
    ) from error


@contextmanager
def without_retries() -> Iterator[None]:
    """Within, MLflow is asked once and for a few seconds: for a process that is about to end."""
    before = {name: os.environ.get(name) for name in NO_RETRIES}
    os.environ.update(NO_RETRIES)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def mlflow_answers(uri: str) -> bool:
    """Whether MLflow's server at the tracking `uri` answers now; a store that is a file always does.

    Takes a few seconds at most. Any answer below 500 counts, so that a gateway without MLflow's `/health` is no outage.
    """
    if not uri.startswith("http"):
        return True
    try:
        return httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).status_code < 500
    except httpx.HTTPError:
        return False
