"""Figures that people look at: curves over steps, the gold curve, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from alignment.statistics import bin_index

STYLE: dict[str, Any] = {"linewidth": 1.6}


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


def gold_curve(points: Sequence[Mapping[str, float]]) -> Figure:
    """Gold and proxy score of the policy on its way, over the distance √KL from where it began (Gao 2023)."""
    figure, axes = new_figure("the policy on its way: proxy reward and gold score")
    distance = [max(0.0, point["kl"]) ** 0.5 for point in points]
    axes.plot(
        distance,
        [point["reward"] for point in points],
        marker="o",
        color="tab:orange",
        label="reward model (proxy)",
        **STYLE,
    )
    axes.set_xlabel("√KL(policy ‖ SFT), nats½ a response")
    axes.set_ylabel("normalised reward", color="tab:orange")
    if "score" in points[0]:
        gold = axes.twinx()
        gold.plot(
            distance, [point["score"] for point in points], marker="s", color="tab:blue", label="gold score", **STYLE
        )
        gold.set_ylabel("gold score", color="tab:blue")
    for x, point in zip(distance, points, strict=True):
        axes.annotate(
            f"{point['step']:.0f}", (x, point["reward"]), textcoords="offset points", xytext=(4, -11), fontsize=7
        )
    return figure


def kinds_chart(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """Helpful, truthful, harmless and the gold score of each model, side by side."""
    figure, axes = new_figure("gold judge on held-out prompts")
    names = ("helpful", "truthful", "harmless", "score")
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
