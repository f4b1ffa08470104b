"""The log of a stage: metrics per step and figures, written to disk first.

The runner of a stage may pass a callback (`on_metrics`) that sends the same values to a tracking server; the file is
authoritative, so an unavailable server loses nothing.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENVIRONMENT_FILE = "environment.json"  # read into provenance and removed when the stage has ended
Listener = Callable[[Mapping[str, float], int, int], None]


class Journal:
    """Appends to `metrics.jsonl` in a directory and saves figures below `figures/`.

    Values that are not finite are omitted, in the file (JSON has no NaN) and in the callback.
    """

    def __init__(self, directory: Path, on_metrics: Listener | None = None) -> None:
        self.directory = directory
        self.metrics_file = directory / "metrics.jsonl"
        self._on_metrics = on_metrics
        self._logged: set[tuple[int, str]] | None = None  # by a killed run, from which this one resumes
        directory.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append a step's values as a line {"step", "timestamp_ms", "values"}.

        Values that a killed run logged for the same step, and `rewind` did not remove, are not logged again.
        """
        if self._logged is None:
            cut_half_line(self.metrics_file)
            self._logged = {(line["step"], name) for line in self.read() for name in line["values"]}
        new = {name: float(value) for name, value in values.items() if (step, name) not in self._logged}
        finite = {name: value for name, value in new.items() if math.isfinite(value)}
        if values and not new:
            return
        timestamp_ms = time.time_ns() // 1_000_000
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "timestamp_ms": timestamp_ms, "values": finite}) + "\n")
        if self._on_metrics is not None:
            self._on_metrics(finite, step, timestamp_ms)

    def rewind(self, step: int) -> None:
        """Remove the first line after `step` and all that follow: a resumed run logs them again."""
        if not self.metrics_file.exists():
            return
        kept = takewhile(lambda line: line["step"] <= step, read_metrics(self.metrics_file))
        temporary = self.metrics_file.with_name("metrics.jsonl.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.metrics_file)
        self._logged = None

    def figure(self, name: str, figure: "Figure") -> Path:
        """Save a figure as `figures/NAME.png`."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120, bbox_inches="tight")
        return path

    def read(self) -> list[dict[str, Any]]:
        """Every line written so far."""
        return read_metrics(self.metrics_file) if self.metrics_file.exists() else []

    def describe(self, environment: Mapping[str, str]) -> None:
        """Write where the stage is computed, such as its device, to `environment.json`."""
        (self.directory / ENVIRONMENT_FILE).write_text(json.dumps(environment) + "\n", encoding="utf-8")

    def note(self, name: str, lines: Sequence[str]) -> None:
        """Write a note for later readers of the run: `notes/NAME.txt`."""
        path = self.directory / "notes" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cut_half_line(path: Path) -> None:
    """Truncate an incomplete last line of a killed process, so that the next line starts on its own."""
    if path.exists():
        with path.open("rb+") as file:
            written = file.read()
            file.truncate(written.rfind(b"\n") + 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an incomplete last line (of a killed process) is skipped."""
    lines = []
    for raw in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(raw))
        except json.JSONDecodeError:
            break
    return lines
