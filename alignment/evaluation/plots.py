"""The plot of gold score against reward, from the report of the evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from alignment.evaluation.overoptimization import Fit
from alignment.plots import STYLE, new_figure

TAG_ROOM = 0.04  # of the plotted distance, between two points that are labelled with their steps


def plot_gold_curve(report: Mapping[str, Any]) -> Figure:
    """Gold score and reward (the proxy) of PPO's snapshots over their distance √KL from SFT (Gao 2023).

    Dashed: the fitted laws; hollow: best-of-n sampling from SFT; a vertical line at the selected snapshot.
    """
    points, best_of_n = report.get("curve", []), report.get("best_of_n", [])
    fits, chosen = report.get("curve_fit", {}), report.get("chosen_step")
    figure, axes = new_figure("the policy on its way: proxy reward and gold score")
    axes.set_xlabel("√KL(policy ‖ SFT), nats½ a response")
    axes.set_ylabel("normalised reward", color="tab:orange")
    shown = [*points, *best_of_n]
    reach = max((_distance(point) for point in shown), default=0.0)
    sides = [(axes, "reward", "proxy", "tab:orange", "o", "reward model (proxy)")]
    if any("score" in point for point in shown):
        gold = axes.twinx()
        gold.set_ylabel("gold score", color="tab:blue")
        sides.append((gold, "score", "gold", "tab:blue", "s", "gold score"))
    for side, key, name, color, marker, label in sides:
        _line(side, points, key, {"marker": marker, "color": color, "label": label, **STYLE})
        hollow = {"marker": marker, "color": color, "linestyle": ":", "markerfacecolor": "none", "linewidth": 1}
        _line(side, best_of_n, key, {**hollow, "label": f"{label}, best of n"})
        if name in fits:
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
    """The law of a fit, offset by the reward of its first point."""
    law = Fit(fit["alpha"], fit["beta"], fit["residual"], int(fit["points"]))
    distances = [reach * i / 100 for i in range(101)]
    values = [fit["start"] + law.at(distance) for distance in distances]
    sign = "−" if law.beta >= 0 else "+"
    label = f"d ({law.alpha:.3f} {sign} {abs(law.beta):.3f} log d), residual {law.residual:.3f}"
    axes.plot(distances, values, color=color, linestyle="--", linewidth=1, label=label)


def _tag(axes: Any, point: Mapping[str, float], text: str) -> None:
    where = (_distance(point), point["reward"])
    axes.annotate(text, where, textcoords="offset points", xytext=(4, -11), fontsize=7)
