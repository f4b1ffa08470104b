"""What a stage writes down while it works: metrics a step and figures, on disk first.

Whoever runs the stage may listen (`on_metrics`) and send the same values to a tracking server; the file is the truth,
so a server that is away for a while loses nothing.
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


Listener = Callable[[Mapping[str, float], int, int], None]


class Journal:
    """Appends to `metrics.jsonl` in a directory and saves figures below `figures/`.

    A value that is not finite is left out of the file (JSON has no NaN) and of what the listener hears.
    """

    def __init__(self, directory: Path, on_metrics: Listener | None = None) -> None:
        self.directory = directory
        self.metrics_file = directory / "metrics.jsonl"
        self._on_metrics = on_metrics
        self._said: set[tuple[int, str]] | None = None  # by a killed run, which this one goes on from
        directory.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one step's values: a line of {"step", "timestamp_ms", "values"}.

        What a killed run had written of the same step, and `rewind` did not take back, is not written again.
        """
        if self._said is None:
            cut_half_line(self.metrics_file)
            self._said = {(line["step"], name) for line in self.read() for name in line["values"]}
        new = {name: float(value) for name, value in values.items() if (step, name) not in self._said}
        finite = {name: value for name, value in new.items() if math.isfinite(value)}
        if values and not new:
            return
        timestamp_ms = time.time_ns() // 1_000_000
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "timestamp_ms": timestamp_ms, "values": finite}) + "\n")
        if self._on_metrics is not None:
            self._on_metrics(finite, step, timestamp_ms)

    def rewind(self, step: int) -> None:
        """Forget the first line after `step` and what follows it, of whatever step: they are written again."""
        if not self.metrics_file.exists():
            return
        kept = takewhile(lambda line: line["step"] <= step, read_metrics(self.metrics_file))
        temporary = self.metrics_file.with_name("metrics.jsonl.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.metrics_file)
        self._said = None

    def figure(self, name: str, figure: "Figure") -> Path:
        """Save a figure as `figures/NAME.png`."""
        path = self.directory / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120, bbox_inches="tight")
        return path

    def read(self) -> list[dict[str, Any]]:
        """Every line written so far."""
        return read_metrics(self.metrics_file) if self.metrics_file.exists() else []

    def note(self, name: str, lines: Sequence[str]) -> None:
        """Write words for whoever looks at the run later: `notes/NAME.txt`."""
        path = self.directory / "notes" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cut_half_line(path: Path) -> None:
    """Cut off what a killed process wrote of its last line, so that the next one begins on its own."""
    if path.exists():
        with path.open("rb+") as file:
            written = file.read()
            file.truncate(written.rfind(b"\n") + 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a half-written last line (a killed process) is passed over."""
    lines = []
    for raw in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(raw))
        except json.JSONDecodeError:
            break
    return lines
