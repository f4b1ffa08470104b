"""Calibration of a reward model as a plot."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from alignment.plots import STYLE, new_figure
from alignment.statistics import bin_index


def calibration(margins: Tensor, bins: int = 10) -> Figure:
    """The share of pairs in which people chose the predicted side, over its predicted probability."""
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
