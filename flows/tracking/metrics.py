"""Sends metrics to MLflow: in the background while a stage runs, and the missing ones at its end.

The stage's `metrics.jsonl` is the source of truth, and MLflow is asked which values it has, by name and step. An outage
of the server does not slow training: sending continues where it stopped when the server is back. A request whose
response was lost is repeated with the same timestamps, so MLflow stores it once.

A killed stage repeats the training steps after its checkpoint. Values that were already sent for them stay, since
MLflow cannot delete values: they are not sent again. Training resumes bit for bit on the same type of processor with
the same libraries and number of threads, so only times differ; if other values do, `send_all` tags the run with the
first such step.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from alignment.artifacts import read_result
from alignment.journal import read_metrics
from flows.stack.outages import mlflow_answers

log = logging.getLogger(__name__)
Line = Mapping[str, Any]  # {"step", "timestamp_ms", "values"}, as the journal writes them
Point = tuple[str, int]  # a metric's name and step
METRICS_FILE = "metrics.jsonl"
BATCH = 1000  # the server's limit for a request
INTERVAL_SECONDS = 2.0
CLOSE_SECONDS = 3.0
PROGRESS_SECONDS = 20.0
SHOWN = ("loss", "heldout_loss", "reward", "kl", "length", "train_accuracy")  # in the log line of a running stage
TIMES = ("seconds", "per_second")  # parts of metric names whose values differ when a step is repeated


class MetricSender:
    """Sends new lines of a metrics file from its own thread; its failures never affect training.

    During an outage of the server nothing is lost and training does not wait: new lines stay in the file.
    """

    def __init__(self, run_id: str, metrics_file: Path, stage: str = "stage") -> None:
        self._run_id, self._stage, self._file = run_id, stage, metrics_file
        self.sent: dict[Point, float] | None = (
            None  # read from MLflow before the first batch: a killed attempt may have sent some
        )
        self._unsent: dict[Point, Metric] = {}
        self._read_to, self._logged_at, self._warned_at = (0, 0), time.monotonic(), 0.0
        self._closed = threading.Event()
        context = copy_context()  # of the flow run, so that log lines reach its page
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name=f"metrics-{run_id[:8]}", daemon=True
        )

    def __enter__(self) -> "MetricSender":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. After success, wait for the current batch: `send_all` then sends what is missing."""
        self._closed.set()
        self._thread.join(None if error is None else CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._closed.wait(INTERVAL_SECONDS)
            lines = self._new_lines()
            self._log_progress(lines)
            for line in lines:
                for metric in to_metrics(line):
                    self._unsent.setdefault((metric.key, metric.step), metric)
            self._send()

    def _new_lines(self) -> list[Line]:
        """Lines that were not read yet. A file that was replaced (by a resumed stage) is read from its start."""
        if not self._file.exists():
            return []
        inode, offset = self._read_to
        with self._file.open("rb") as file:
            current = os.fstat(file.fileno()).st_ino
            file.seek(offset if current == inode else 0)
            complete, _, _ = file.read().rpartition(b"\n")  # the last line may be incomplete
            self._read_to = (current, (offset if current == inode else 0) + len(complete) + bool(complete))
        return list(_parse(complete))

    def _log_progress(self, lines: list[Line]) -> None:
        """Log the progress of a long stage periodically."""
        if not lines or time.monotonic() - self._logged_at < PROGRESS_SECONDS:
            return
        self._logged_at = time.monotonic()
        values, step = lines[-1]["values"], lines[-1]["step"]
        shown = ", ".join(f"{name} {values[name]:.3g}" for name in SHOWN if name in values)
        log.info("%s at step %d%s", self._stage, step, f": {shown}" if shown else "")

    def _send(self) -> None:
        """Send the unsent metrics; after a failure the rest is sent the next time."""
        try:
            if self._unsent and not mlflow_answers(get_tracking_uri()):
                raise MlflowException("it does not answer")
            if self._unsent and self.sent is None:
                self.sent = stored_values(self._run_id)
            while self._unsent and self.sent is not None:
                self._send_batch(self.sent)
        except MlflowException as error:
            if not self._warned_at:
                self._warned_at = time.monotonic()
                log.warning("MLflow is not available, metrics are kept on disk and sent later: %s", error)
            return
        if self._warned_at and not self._unsent:
            log.info("MLflow is back after %.0f s: all metrics were sent", time.monotonic() - self._warned_at)
            self._warned_at = 0.0

    def _send_batch(self, sent: dict[Point, float]) -> None:
        points = [*self._unsent][:BATCH]
        send(self._run_id, [self._unsent[point] for point in points if point not in sent])
        for point in points:
            sent.setdefault(point, self._unsent.pop(point).value)


def _parse(text: bytes) -> Iterator[Line]:
    for raw in text.splitlines():
        try:
            yield json.loads(raw)
        except json.JSONDecodeError:
            continue  # a partial line of a killed process


def to_metrics(line: Line) -> list[Metric]:
    """The metrics of a line for MLflow."""
    return [Metric(name, value, int(line["timestamp_ms"]), int(line["step"])) for name, value in line["values"].items()]


def stored_values(run_id: str) -> dict[Point, float]:
    """All metric values of a run in MLflow."""
    client = MlflowClient()
    names = client.get_run(run_id).data.metrics
    return {(name, m.step): m.value for name in names for m in client.get_metric_history(run_id, name)}


def send(run_id: str, metrics: list[Metric]) -> None:
    """Send metrics in batches. Raises MlflowException. Idempotent for the same timestamps."""
    client = MlflowClient()
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH], synchronous=True)


def send_all(run_id: str, output: Path, sent: Mapping[Point, float] | None = None) -> None:
    """Send the missing metrics of a finished stage, and its figures as `final/NAME`.

    `sent` are the values that MLflow has; None reads them, which takes about a second for 3,000 values.
    """
    lines = read_metrics(output / METRICS_FILE) if (output / METRICS_FILE).exists() else []
    figures = {f"final/{name}": value for name, value in read_result(output).items()}
    finished_ms = (output / "result.json").stat().st_mtime_ns // 1_000_000
    metrics = [m for line in [*lines, _line(0, finished_ms, figures)] for m in to_metrics(line)]
    stored = stored_values(run_id) if sent is None else sent
    send(run_id, [metric for metric in metrics if (metric.key, metric.step) not in stored])
    step = first_difference(metrics, stored)
    if step is not None:
        message = f"repeated after a stop, step {step} and later have other values: metrics.jsonl has the repeated ones"
        log.warning("%s: %s", run_id, message)
        MlflowClient().set_tag(run_id, "rlhf.metrics", message)


def _line(step: int, timestamp_ms: int, values: Mapping[str, float]) -> Line:
    return {"step": step, "timestamp_ms": timestamp_ms, "values": values}


def first_difference(metrics: Iterable[Metric], stored: Mapping[Point, float]) -> int | None:
    """The first step with another value in MLflow than in `metrics`, ignoring times; None if there is none."""
    return min(
        (
            metric.step
            for metric in metrics
            if stored.get((metric.key, metric.step), metric.value) != metric.value
            and not any(part in metric.key for part in TIMES)
        ),
        default=None,
    )
