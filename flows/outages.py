"""A server that is away: how long its clients ask again, and whether it answers at this moment.

MLflow's and Prefect's clients repeat a request that found no server, each time after about twice as long. How often is
set here, for every process of a run; a variable that is already set is left as it is. After that the request fails, the
run ends in a state from which the same command goes on, and `flows.endings` says so in words.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

MINUTES_OF_PATIENCE = 8
PROBE_SECONDS = 3.0
PATIENCE = "RLHF_PATIENCE_SECONDS"
RETRIES = {
    # waits of 0, 2, 4, ... 64 and three of 120 s; a request that got no answer is repeated as well
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # waits of 2, 4, ... 256 s
    "PREFECT_CLIENT_MAX_RETRIES": "8",
}
HURRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}


def retries() -> dict[str, str]:
    """Variables that make the clients of MLflow and Prefect ask for about eight minutes."""
    return {name: os.environ.get(name, value) for name, value in RETRIES.items()}


def patience_seconds() -> float:
    """For how long Label Studio is asked again when it is away; RLHF_PATIENCE_SECONDS, else eight minutes."""
    return float(os.environ.get(PATIENCE, MINUTES_OF_PATIENCE * 60))


@contextmanager
def hurried() -> Iterator[None]:
    """Within, MLflow is asked once and for a few seconds: for a process that is about to end."""
    before = {name: os.environ.get(name) for name in HURRY}
    os.environ.update(HURRY)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def mlflow_answers() -> bool:
    """Whether MLflow's server answers now; a store that is a file always does. Takes at most a few seconds.

    Any answer but one of a broken server counts, so that a gateway without MLflow's `/health` is no outage.
    """
    import mlflow  # reads its settings when it is imported: those of a stack have to be there before

    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return True
    try:
        return httpx.get(f"{uri.rstrip('/')}/health", timeout=PROBE_SECONDS).status_code < 500
    except httpx.HTTPError:
        return False
