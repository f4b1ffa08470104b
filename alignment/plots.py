"""Figures that people look at: curves over steps, the gold curve, calibration."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from alignment.criteria import GOLD_FIGURES
from alignment.evaluation.overoptimization import Fit
from alignment.statistics import bin_index

STYLE: dict[str, Any] = {"linewidth": 1.6}
TAG_ROOM = 0.04  # of the distance shown, between two points that are tagged with their steps


def curve(lines: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> Figure:
    """Named metrics over steps in one plot."""
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
    """A figure with one set of axes and a grid."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.25)
    return figure, axes


def calibration(margins: Tensor, bins: int = 10) -> Figure:
    """How often the favoured side was the one that people chose, against how sure the model was."""
    confidence, correct = torch.sigmoid(margins.abs()), (margins > 0).float()
    index = bin_index(confidence, bins)
    points = [
        (float(confidence[index == n].mean()), float(correct[index == n].mean()), int((index == n).sum()))
        for n in range(bins)
        if bool((index == n).any())
    ]
    figure, axes = new_figure("calibration on held-out prompts (dot area: number of pairs)")
    axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
    largest = max(count for _, _, count in points)
    axes.plot(*zip(*((x, y) for x, y, _ in points), strict=True), **STYLE)
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=[20 + 160 * c / largest for _, _, c in points])
    axes.set_xlabel("predicted probability of the favoured side")
    axes.set_ylabel("share that people chose")
    return figure


def gold_curve(
    points: Sequence[Mapping[str, float]],
    fits: Mapping[str, Mapping[str, float]] | None = None,
    best_of_n: Sequence[Mapping[str, float]] = (),
    chosen: int | None = None,
) -> Figure:
    """Gold and proxy score of the policy on its way, over the distance √KL from where it began (Gao 2023).

    Dashed: the laws that were fitted to them; hollow: best-of-n sampling from SFT; a line at the snapshot that was
    chosen.
    """
    figure, axes = new_figure("the policy on its way: proxy reward and gold score")
    axes.set_xlabel("√KL(policy ‖ SFT), nats½ a response")
    axes.set_ylabel("normalised reward", color="tab:orange")
    everything = [*points, *best_of_n]
    reach = max((_distance(point) for point in everything), default=0.0)
    sides = [(axes, "reward", "proxy", "tab:orange", "o", "reward model (proxy)")]
    if any("score" in point for point in everything):
        gold = axes.twinx()
        gold.set_ylabel("gold score", color="tab:blue")
        sides.append((gold, "score", "gold", "tab:blue", "s", "gold score"))
    for side, key, name, color, marker, label in sides:
        _line(side, points, key, {"marker": marker, "color": color, "label": label, **STYLE})
        hollow = {"marker": marker, "color": color, "linestyle": ":", "markerfacecolor": "none", "linewidth": 1}
        _line(side, best_of_n, key, {**hollow, "label": f"{label}, best of n"})
        if fits and name in fits:
            _fitted(side, fits[name], reach, color)
    tagged = -math.inf
    for point in points:
        if _distance(point) - tagged >= TAG_ROOM * reach:
            _tag(axes, point, f"{point['step']:.0f}")
            tagged = _distance(point)
        if point["step"] == chosen:
            axes.axvline(_distance(point), color="grey", linewidth=1, linestyle="--", label="chosen")
    for point in best_of_n:
        _tag(axes, point, f"n={point['n']:.0f}")
    handles = [handle for side, *_ in sides for handle in side.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, fontsize=7)
    return figure


def _distance(point: Mapping[str, float]) -> float:
    return math.sqrt(max(0.0, point["kl"]))


def _line(axes: Any, points: Sequence[Mapping[str, float]], key: str, style: Mapping[str, Any]) -> None:
    if points:
        axes.plot([_distance(point) for point in points], [point[key] for point in points], **style)


def _fitted(axes: Any, fit: Mapping[str, float], reach: float, color: str) -> None:
    """The law of a fit, from the start that its rewards were counted from."""
    law = Fit(fit["alpha"], fit["beta"], fit["residual"], int(fit["points"]))
    distances = [reach * i / 100 for i in range(101)]
    values = [fit["start"] + law.at(distance) for distance in distances]
    sign = "−" if law.beta >= 0 else "+"
    label = f"d ({law.alpha:.3f} {sign} {abs(law.beta):.3f} log d), residual {law.residual:.3f}"
    axes.plot(distances, values, color=color, linestyle="--", linewidth=1, label=label)


def _tag(axes: Any, point: Mapping[str, float], text: str) -> None:
    where = (_distance(point), point["reward"])
    axes.annotate(text, where, textcoords="offset points", xytext=(4, -11), fontsize=7)


def kinds_chart(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """The mean score by criterion and the gold score of each model, side by side."""
    figure, axes = new_figure("gold judge on held-out prompts")
    names = GOLD_FIGURES
    width = 0.8 / len(models)
    for number, (model, values) in enumerate(models.items()):
        bars = axes.bar(
            [i + number * width for i in range(len(names))], [values[n] for n in names], width=width * 0.92, label=model
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks([i + width * (len(models) - 1) / 2 for i in range(len(names))], names)
    axes.set_ylim(0, 1.12)
    axes.legend(frameon=False, ncols=len(models), loc="upper center")
    return figure
