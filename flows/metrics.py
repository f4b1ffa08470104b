"""Metrics on their way to MLflow: in the background while a stage works, and all of them again at its end.

The stage's `metrics.jsonl` is the truth. A server that is away costs nothing: what could not be sent is sent at the
end, and what was sent twice has the same timestamp and counts once.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from alignment.journal import read_metrics

log = logging.getLogger(__name__)
BATCH = 1000  # as many as the server takes at once
INTERVAL_SECONDS = 2.0
CLOSE_SECONDS = 5.0
TELL_SECONDS = 20.0
TOLD = ("loss", "heldout_loss", "reward", "kl", "length", "train_accuracy")  # what a line about a running stage names


class MetricSender:
    """Sends what a journal tells it, in batches, from a thread of its own; its failures never reach the training."""

    def __init__(self, run_id: str, stage: str = "") -> None:
        self._run_id, self._stage = run_id, stage
        self._told_at = time.monotonic()
        self._waiting: queue.SimpleQueue[Metric] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"metrics-{run_id[:8]}", daemon=True)

    def __enter__(self) -> "MetricSender":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    def hear(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """Take one step's values; returns at once. Now and then a line says how far a long stage is."""
        if time.monotonic() - self._told_at > TELL_SECONDS:
            self._told_at = time.monotonic()
            told = ", ".join(f"{name} {values[name]:.3g}" for name in TOLD if name in values)
            log.info("%s at step %d%s", self._stage or "stage", step, f": {told}" if told else "")
        for metric in to_metrics(values, step, timestamp_ms):
            self._waiting.put(metric)

    def _work(self) -> None:
        client = MlflowClient()
        warned = False
        while not (self._closed.is_set() and self._waiting.empty()):
            self._closed.wait(INTERVAL_SECONDS)
            batch = self._take()
            try:
                if batch:
                    client.log_batch(self._run_id, metrics=batch, synchronous=True)
            except MlflowException as error:
                if not warned:
                    log.warning("metrics are kept on disk and sent at the end of the stage; MLflow said: %s", error)
                warned = True

    def _take(self) -> list[Metric]:
        batch: list[Metric] = []
        while len(batch) < BATCH:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return batch


def to_metrics(values: Mapping[str, float], step: int, timestamp_ms: int) -> list[Metric]:
    """MLflow's form of one step's values."""
    return [Metric(name, value, timestamp_ms, step) for name, value in values.items()]


def send_all(run_id: str, metrics_file: Path, result: Mapping[str, float]) -> None:
    """Send a finished stage's metrics whole, and its figures as `final/NAME`."""
    lines = read_metrics(metrics_file) if metrics_file.exists() else []
    steps = (
        metric for line in lines for metric in to_metrics(line["values"], int(line["step"]), int(line["timestamp_ms"]))
    )
    _send(run_id, steps)
    now = time.time_ns() // 1_000_000
    _send(run_id, to_metrics({f"final/{name}": value for name, value in result.items()}, 0, now))


def _send(run_id: str, metrics: Iterable[Metric]) -> None:
    client = MlflowClient()
    rest = iter(metrics)
    while batch := list(islice(rest, BATCH)):
        client.log_batch(run_id, metrics=batch, synchronous=True)
