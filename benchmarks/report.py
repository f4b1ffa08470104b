"""Medians over the rounds, ratios of runs that stood side by side, and both as tables."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figures
from benchmarks.rows import Row

Summary = dict[str, str | float | None]
COLUMNS = {  # heading: (key, format)
    "episodes/s": ("episodes_per_second", "{:.2f}"),
    "× rival": ("speedup", "{:.2f}"),
    "by CPU time": ("cpu_speedup", "{:.2f}"),
    "tokens/s": ("response_tokens_per_second", "{:.0f}"),
    "generate s": ("generate_seconds", "{:.1f}"),
    "score s": ("score_seconds", "{:.1f}"),
    "update s": ("update_seconds", "{:.1f}"),
    "padding": ("padding_share", "{:.0%}"),
    "of matrix rate": ("matrix_share", "{:.0%}"),
    "peak MiB": ("peak_mib", "{:.0f}"),
    "over baseline": ("over_baseline_mib", "{:.0f}"),
    "× rival's": ("memory_ratio", "{:.2f}"),
    "CPU/wall": ("cpu_share", "{:.2f}"),
}


def summaries(rows: Sequence[Row], runs: Sequence[dict[str, Figures]], matrix_rate: float) -> list[Summary]:
    """A summary of each row: medians over the rounds; ratios are taken within a round first."""
    return [_summary(row, runs, matrix_rate) for row in rows]


def _summary(row: Row, runs: Sequence[dict[str, Figures]], matrix_rate: float) -> Summary:
    own = [run[row.name] for run in runs]
    pairs = [(run[row.name], run[row.rival]) for run in runs] if row.rival else []
    return {
        "row": row.name,
        "rival": row.rival,
        "episodes_per_second": median(f.episodes / f.seconds for f in own),
        "speedup": median(_speed(a) / _speed(b) for a, b in pairs) if pairs else None,
        "cpu_speedup": median(_cpu_speed(a) / _cpu_speed(b) for a, b in pairs) if pairs else None,
        "response_tokens_per_second": median(f.response_tokens / f.seconds for f in own),
        "generate_seconds": median(f.generate_seconds for f in own),
        "score_seconds": median(f.score_seconds for f in own),
        "update_seconds": median(f.update_seconds for f in own),
        "padding_share": median(f.padding_share for f in own),
        "matrix_share": median(f.update_flops / f.update_seconds for f in own) / matrix_rate,
        "peak_mib": median(f.peak_mib for f in own),
        "over_baseline_mib": median(f.peak_mib - f.baseline_mib for f in own),
        "memory_ratio": median(a.peak_mib / b.peak_mib for a, b in pairs) if pairs else None,
        "memory_over_baseline_ratio": median(_over(a) / _over(b) for a, b in pairs) if pairs else None,
        "cpu_share": median(f.cpu_seconds / f.seconds for f in own),
    }


def _speed(figures: Figures) -> float:
    return figures.episodes / figures.seconds


def _cpu_speed(figures: Figures) -> float:
    return figures.episodes / figures.cpu_seconds


def _over(figures: Figures) -> float:
    return figures.peak_mib - figures.baseline_mib


def _cells(summary: Summary) -> list[str]:
    values = ((summary[key], form) for key, form in COLUMNS.values())
    return [str(summary["row"]), *("" if value is None else form.format(value) for value, form in values)]


def print_table(facts: dict[str, Any], summary: Sequence[Summary]) -> None:
    """The table on the terminal."""
    table = Table("row", *COLUMNS, title=heading(facts))
    for line in summary:
        table.add_row(*_cells(line))
    Console(width=max(160, Console().width)).print(table)


def heading(facts: dict[str, Any]) -> str:
    """Machine, threads and matrix rate in a line."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['matrix_gflops']:.0f} GFLOP/s in matrix products; medians of {facts['rounds']} rounds"
    )


def markdown(facts: dict[str, Any], summary: Sequence[Summary]) -> str:
    """The table for docs/benchmarks.md, with what is needed to make it again."""
    lines = [f"`{facts['command']}`", "", heading(facts) + "; " + _versions(facts), ""]
    lines += [f"| row | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(line))} |" for line in summary), ""])


def _versions(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + "; rival TRL 1.12.0"
