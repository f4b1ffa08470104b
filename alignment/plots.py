"""Plots that stages share: metrics over steps, and the style of a figure."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

STYLE: dict[str, Any] = {"linewidth": 1.6}


def curve(lines: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> Figure:
    """Named metrics over steps in a single plot."""
    figure, axes = new_figure(title)
    for name in names:
        points = [(line["step"], line["values"][name]) for line in lines if name in line["values"]]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **STYLE)
    axes.set_xlabel("step")
    axes.legend(frameon=False)
    return figure


def panels(lines: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, columns: int = 3) -> Figure:
    """Each named metric in a panel of its own."""
    present = [name for name in names if any(name in line["values"] for line in lines)]
    rows = -(-len(present) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * max(1, rows)), layout="constrained")
    figure.suptitle(title)
    for number, name in enumerate(present, start=1):
        axes = figure.add_subplot(rows, columns, number)
        points = [(line["step"], line["values"][name]) for line in lines if name in line["values"]]
        axes.plot(*zip(*points, strict=True), **STYLE)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
    return figure


def new_figure(title: str) -> tuple[Figure, Any]:
    """A figure with a single set of axes and a grid."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.25)
    return figure, axes
