"""Metrics on their way to MLflow: in the background while a stage works, and what is missing at its end.

The stage's `metrics.jsonl` is the truth. What is sent is written into a ledger first, with its timestamp; a value that
is sent again has the same timestamp, so MLflow counts it once. The ledger also has how much of it MLflow has taken. A
server that is away costs nothing: sending goes on where it stopped as soon as it answers.

A stage that was killed trains the steps after its checkpoint again. What was sent of them stays sent, for MLflow
forgets nothing: a metric of a step that is in the ledger is not sent a second time. Training resumes bit for
bit on the same type of processor with the same libraries and number of threads, so only times differ; where more does,
`send_all` says from which step.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import copy_context
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from alignment.artifacts import read_result
from alignment.journal import cut_half_line, read_metrics
from flows.stack.outages import mlflow_answers

log = logging.getLogger(__name__)
Line = Mapping[str, Any]  # {"step", "timestamp_ms", "values"}, as the journal writes them
METRICS_FILE = "metrics.jsonl"
BATCH = 1000  # as many as the server takes at once
INTERVAL_SECONDS = 2.0
CLOSE_SECONDS = 3.0
TELL_SECONDS = 20.0
TOLD = ("loss", "heldout_loss", "reward", "kl", "length", "train_accuracy")  # what a line about a running stage names
TIMES = ("seconds", "per_second")  # parts of names of metrics that differ whenever a step is trained again


class Ledger:
    """What was sent, or was about to be when the process ended: a file of lines like the journal's, and among them
    {"sent": N} for the first N that MLflow has taken.

    It lies beside the stage's output and not in it, and is removed when the stage is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[int, frozenset[str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(path)
        lines = self.read()
        self._length = len(lines)
        for line in lines:
            self._remember(line)

    def read(self) -> list[Line]:
        """Every line, oldest first."""
        return [line for line in self._all() if "sent" not in line]

    def owed(self) -> list[Line]:
        """The lines that MLflow is not known to have taken."""
        lines = self._all()
        taken = max((line["sent"] for line in lines if "sent" in line), default=0)
        return [line for line in lines if "sent" not in line][taken:]

    def settle(self) -> None:
        """MLflow has taken all lines that were read and added here; there may be newer ones of another process."""
        self._write([{"sent": self._length}])

    def add(self, lines: Iterable[Line]) -> list[Line]:
        """Write down what is new in `lines`, and return it: metrics of steps that the ledger does not have yet."""
        new = [line for line in map(self._unknown, lines) if line["values"]]
        self._write(new)
        self._length += len(new)
        return new

    def _all(self) -> list[Line]:
        return list(read_metrics(self.path)) if self.path.exists() else []

    def _write(self, lines: Iterable[Line]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _unknown(self, line: Line) -> Line:
        known = self._known.get(line["step"], frozenset())
        values = {name: value for name, value in line["values"].items() if name not in known}
        self._remember(line)
        return {**line, "values": values}

    def _remember(self, line: Line) -> None:
        self._known[line["step"]] = self._known.get(line["step"], frozenset()) | line["values"].keys()


class MetricSender:
    """Sends what appears in a metrics file, from a thread of its own; its failures never reach the training.

    While the server does not answer nothing is lost and nobody waits: what is new stays in the file.
    """

    def __init__(self, run_id: str, metrics_file: Path, ledger: Path, stage: str = "stage") -> None:
        self._run_id, self._stage = run_id, stage
        self._file, self._ledger = metrics_file, Ledger(ledger)
        self._owed = self._ledger.owed()  # of a killed attempt, which may not have come so far
        self._read_to, self._told_at, self._warned_at = (0, 0), time.monotonic(), 0.0
        self._closed = threading.Event()
        within = copy_context()  # of the flow run, so that what is logged reaches its page
        self._thread = threading.Thread(
            target=within.run, args=(self._work,), name=f"metrics-{run_id[:8]}", daemon=True
        )

    def __enter__(self) -> "MetricSender":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._closed.wait(INTERVAL_SECONDS)
            fresh = self._fresh()
            self._tell(fresh)
            self._owed += self._ledger.add(fresh)
            self._send()

    def _fresh(self) -> list[Line]:
        """Lines that were not read yet. A file that was written anew (a resumed stage) is read from its start."""
        if not self._file.exists():
            return []
        number, done = self._read_to
        with self._file.open("rb") as file:
            now = os.fstat(file.fileno()).st_ino
            file.seek(done if now == number else 0)
            whole, _, _ = file.read().rpartition(b"\n")  # the rest of a line may still be on its way
            self._read_to = (now, (done if now == number else 0) + len(whole) + bool(whole))
        return list(_lines(whole))

    def _tell(self, fresh: list[Line]) -> None:
        """Now and then a line says how far a long stage is."""
        if not fresh or time.monotonic() - self._told_at < TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        values, step = fresh[-1]["values"], fresh[-1]["step"]
        told = ", ".join(f"{name} {values[name]:.3g}" for name in TOLD if name in values)
        log.info("%s at step %d%s", self._stage, step, f": {told}" if told else "")

    def _send(self) -> None:
        """Send what is owed; at the first failure the rest waits for the next time."""
        if not self._owed:
            return
        try:
            if not mlflow_answers():
                raise MlflowException("it does not answer")
            send(self._run_id, self._owed)
            self._ledger.settle()
        except MlflowException as error:
            if not self._warned_at:
                self._warned_at = time.monotonic()
                log.warning("MLflow is away, metrics are kept on disk and sent when it is back: %s", error)
            return
        if self._warned_at:
            away = time.monotonic() - self._warned_at
            log.info("MLflow is back after %.0f s: metrics of %d lines were sent", away, len(self._owed))
        self._owed, self._warned_at = [], 0.0


def _lines(text: bytes) -> Iterator[Line]:
    for raw in text.splitlines():
        try:
            yield json.loads(raw)
        except json.JSONDecodeError:
            continue  # half a line, of a killed process


def to_metrics(line: Line) -> list[Metric]:
    """MLflow's form of one line."""
    return [Metric(name, value, int(line["timestamp_ms"]), int(line["step"])) for name, value in line["values"].items()]


def send(run_id: str, lines: Iterable[Line]) -> None:
    """Send lines in batches. Raises MlflowException; sent again they change nothing."""
    client = MlflowClient()
    rest = (metric for line in lines for metric in to_metrics(line))
    while batch := list(islice(rest, BATCH)):
        client.log_batch(run_id, metrics=batch, synchronous=True)


def send_all(run_id: str, output: Path, ledger: Path) -> None:
    """Send what is missing of a finished stage's metrics, and its figures as `final/NAME`; each counts once."""
    lines = read_metrics(output / METRICS_FILE) if (output / METRICS_FILE).exists() else []
    figures = {f"final/{name}": value for name, value in read_result(output).items()}
    finished_ms = (output / "result.json").stat().st_mtime_ns // 1_000_000
    book = Ledger(ledger)
    book.add([*lines, {"step": 0, "timestamp_ms": finished_ms, "values": figures}])
    send(run_id, book.owed())
    book.settle()
    first = first_difference(lines, book.read())
    if first is not None:
        words = f"trained again after a stop, step {first} and after came out otherwise: metrics.jsonl has the second"
        log.warning("%s: %s", run_id, words)
        MlflowClient().set_tag(run_id, "rlhf.metrics", words)


def first_difference(lines: Iterable[Line], sent: Iterable[Line]) -> int | None:
    """The first step of which something else was sent than what `lines` have, times apart; None when there is none."""
    shown: dict[tuple[int, str], float] = {}
    for line in sent:
        shown |= {(line["step"], name): value for name, value in line["values"].items()}
    return min(
        (
            line["step"]
            for line in lines
            for name, value in line["values"].items()
            if shown[line["step"], name] != value and not any(part in name for part in TIMES)
        ),
        default=None,
    )
