"""Figures of annotators: agreement, gold accuracy, reliability, speed and habits; and progress over time."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from matplotlib.figure import Figure

from labeling.quality.results import AnnotatorQuality, Rate

LONGEST_NAME = 28
GOOD, DOUBTFUL, GOLD = "tab:blue", "tab:red", "tab:olive"
HABITS = {
    "position_correlation": "correlation with the order shown (tau)",
    "untouched_share": "rankings left as shown",
    "contradiction_share": "preference contradicts own ratings",
    "hasty_share": "done in under a quarter of the usual time",
}


def crew_figures(crew: Sequence[AnnotatorQuality]) -> dict[str, Figure]:
    """The figures by name; empty without double judgements."""
    judged = [annotator for annotator in crew if annotator.agreement.share is not None]
    if not judged:
        return {}
    return {"annotators": answers_chart(judged), "habits": habits_chart(judged)}


def progress_chart(
    times: Sequence[datetime], done: int, needed: int, now: datetime | None, end: datetime | None
) -> Figure:
    """Cumulative judgements up to `now`, the number needed, and the projection to the expected end.

    Judgements beyond the overlap count in the line but not in `done`, where the projection starts.
    """
    figure = Figure(figsize=(12.4, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.set_ylim(0, max(needed, len(times), 1) * 1.08)
    axes.axhline(needed, color="grey", linestyle="--", linewidth=1)
    axes.set_ylabel("judgements")
    axes.grid(axis="y", alpha=0.25)
    if not times:
        axes.set_xticks([])
        return figure
    ends = [*times, *([now] if now is not None and now > times[-1] else [])]
    axes.step(ends, [*range(1, len(times) + 1), len(times)][: len(ends)], where="post", color=GOOD)  # type: ignore[arg-type]
    if now is not None and end is not None and end > now:
        axes.plot([now, end], [done, needed], color=GOOD, linestyle=":")  # type: ignore[arg-type]
    figure.autofmt_xdate(rotation=0, ha="center")
    return figure


def answers_chart(crew: Sequence[AnnotatorQuality], names: Mapping[str, str] | None = None) -> Figure:
    """Agreement with other annotators and with gold answers, with 95 % intervals; reliability; seconds per judgement.

    One row per annotator, labelled by `names`.
    """
    title = "agreement, reliability and speed (red: open concerns)"
    figure, (left, right, time) = _rows(crew, 3, title, names or {}, width=4.1)
    for row, annotator in enumerate(crew):
        color = DOUBTFUL if annotator.concerns else GOOD
        _interval(left, annotator.agreement, row, {"color": color, "fmt": "o"})
        _interval(left, annotator.gold, row + 0.25, {"color": GOLD, "fmt": "D", "markersize": 4})
        if annotator.reliability is not None:
            right.barh(row, annotator.reliability, color=color, height=0.6)
            right.annotate(
                f"{annotator.reliability:.2f}",
                (annotator.reliability, row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    left.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    left.set_title("same winner as: ● other annotators   ◆ gold answers", fontsize=9)
    right.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    right.set_xlim(0, 1.1)
    right.set_title("reliability η (0.5: chance)", fontsize=9)
    for row, annotator in enumerate(crew):
        time.barh(
            row, annotator.median_lead_time_seconds or 0.0, color=DOUBTFUL if annotator.concerns else GOOD, height=0.6
        )
    time.set_title("median seconds per judgement", fontsize=9)
    return figure


def habits_chart(crew: Sequence[AnnotatorQuality], names: Mapping[str, str] | None = None) -> Figure:
    """One panel per habit, one row per annotator; no bar means not measured."""
    title = "habits of annotators (red: open concerns)"
    figure, panels = _rows(crew, len(HABITS), title, names or {}, width=3.1)
    for axes, (name, title) in zip(panels, HABITS.items(), strict=True):
        for row, annotator in enumerate(crew):
            value = getattr(annotator, name)
            if value is not None:
                axes.barh(row, value, color=DOUBTFUL if annotator.concerns else GOOD, height=0.6)
        axes.set_xlim(-1 if name == "position_correlation" else 0, 1)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_title(title, fontsize=9)
    return figure


def _rows(
    crew: Sequence[AnnotatorQuality], columns: int, title: str, names: Mapping[str, str], width: float
) -> tuple[Figure, Any]:
    """A figure whose panels share a row for each annotator, named on the left."""
    figure = Figure(figsize=(width * columns, 1.4 + 0.32 * len(crew)), layout="constrained")
    panels = figure.subplots(1, columns, sharey=True)
    figure.suptitle(title, fontsize=11)
    displayed = [_shortened(names.get(annotator.annotator_id, annotator.annotator_id)) for annotator in crew]
    labels = [f"{name} ({annotator.judgements})" for name, annotator in zip(displayed, crew, strict=True)]
    panels[0].set_yticks(range(len(crew)), labels, parse_math=False)
    panels[0].set_ylabel("annotator (judgements)")
    panels[0].invert_yaxis()
    for axes in panels:
        axes.grid(axis="x", alpha=0.25)
    return figure, panels


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _interval(axes: Any, rate: Rate, row: float, style: dict[str, Any]) -> None:
    if rate.share is not None and rate.low is not None and rate.high is not None:
        error = [[max(0.0, rate.share - rate.low)], [max(0.0, rate.high - rate.share)]]
        axes.errorbar(rate.share, row, xerr=error, capsize=2, **style)
