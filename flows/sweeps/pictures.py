"""Pictures of a sweep: every figure by setting, and what a win rate costs in KL."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.sweeps.summary import (
    NOTE,
    TITLES,
    Estimate,
    Outcome,
    by_setting,
    estimates,
    shown_figures,
    values_of,
)

COLUMNS = 4
LONGEST_NAME = 40  # characters of a setting beside an axis
SEED, MEAN = "0.6", "C0"  # colours
WINS, KL = "win_rate_vs_sft", "kl_to_sft"


def draw_pictures(outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """Write `figures.png` and, if there are a KL and a win rate, `frontier.png`; returns their paths."""
    names = shown_figures(outcomes)
    if not names:
        return []
    pictures = {"figures": by_figure(outcomes, names)}
    if WINS in names and KL in names:
        pictures["frontier"] = frontier(outcomes)
    paths = []
    for name, picture in pictures.items():
        paths.append(directory / f"{name}.png")
        picture.savefig(paths[-1], dpi=120, bbox_inches="tight")
    return paths


def by_figure(outcomes: Sequence[Outcome], names: Sequence[str]) -> Figure:
    """A panel for each figure: the settings one below the other, each with its seeds, mean and interval."""
    settings, means = by_setting(outcomes), estimates(outcomes)
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    picture = Figure(figsize=(3.2 * columns + 1.5, (0.45 * len(settings) + 1.1) * rows + 0.4), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, name in zip(panels, names, strict=False):
        for height, (setting, cells) in enumerate(settings.items()):
            seeds = list(values_of(cells, name).values())
            panel.plot(seeds, [height] * len(seeds), ".", color=SEED, zorder=1)
            _mean(panel, means[setting][name], height)
        panel.set_title(TITLES[name], fontsize="medium")
        panel.grid(axis="x", alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    panels[0].set_yticks(range(len(settings)), [_short(setting) for setting in settings])
    panels[0].set_ylim(len(settings) - 0.5, -0.5)  # the first setting on top
    picture.supxlabel(f"grey: seeds; blue: {NOTE}", fontsize="small")
    return picture


def _mean(panel: Axes, mean: Estimate | None, height: float) -> None:
    if mean is not None:
        panel.errorbar([mean.mean], [height], xerr=mean.half, fmt="o", color=MEAN, capsize=3, zorder=2)


def frontier(outcomes: Sequence[Outcome]) -> Figure:
    """Win rate over KL, a point for each setting with both intervals, and its seeds in the same colour."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    panel = picture.subplots()
    for number, (setting, cells) in enumerate(by_setting(outcomes).items()):
        colour, means = f"C{number % 10}", estimates(outcomes)[setting]
        seeds = [(cell.figures[KL], cell.figures[WINS]) for cell in cells if {KL, WINS} <= cell.figures.keys()]
        panel.plot([x for x, _ in seeds], [y for _, y in seeds], ".", color=colour, alpha=0.4)
        x, y = means[KL], means[WINS]
        if x is not None and y is not None:
            panel.errorbar([x.mean], [y.mean], xerr=x.half, yerr=y.half, fmt="o", color=colour, label=_short(setting))
    panel.axhline(0.5, color="0.7", linewidth=0.8)
    panel.set(xlabel="KL to SFT, nats per response", ylabel="share of prompts won over SFT")
    panel.legend(fontsize="small")
    panel.set_title(NOTE, fontsize="small")
    return picture


def _short(setting: str) -> str:
    """The name of a setting beside an axis; a dollar sign begins no formula."""
    name = setting if len(setting) <= LONGEST_NAME else f"{setting[: LONGEST_NAME - 1]}…"
    return name.replace("$", "\\$")
