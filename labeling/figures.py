"""Pictures of a crew: who agrees with whom and with known answers, who can be relied on, and who has habits."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from labeling.agreement import Rate
from labeling.quality import AnnotatorQuality

GOOD, DOUBTFUL, GOLD = "tab:blue", "tab:red", "tab:olive"
HABITS = {
    "position_correlation": "order given with order shown (tau)",
    "untouched_share": "rankings left as shown",
    "contradiction_share": "preference against own stars",
    "hasty_share": "done in a quarter of the usual time",
}


def crew_figures(crew: Sequence[AnnotatorQuality]) -> dict[str, Figure]:
    """The pictures by name; none where nobody judged anything together with others."""
    judged = [one for one in crew if one.agreement.share is not None]
    if not judged:
        return {}
    return {"annotators": answers_chart(judged), "habits": habits_chart(judged)}


def answers_chart(crew: Sequence[AnnotatorQuality]) -> Figure:
    """Agreement with the others and with known answers, with 95 % intervals, and reliability, a row an annotator."""
    figure, (left, right) = _rows(crew, 2, "what annotators say (red: there are reasons to doubt)")
    for place, one in enumerate(crew):
        color = DOUBTFUL if one.concerns else GOOD
        _interval(left, one.agreement, place, {"color": color, "fmt": "o"})
        _interval(left, one.gold, place + 0.25, {"color": GOLD, "fmt": "D", "markersize": 4})
        if one.reliability is not None:
            right.barh(place, one.reliability, color=color, height=0.6)
            right.annotate(f"{one.reliability:.2f}", (one.reliability, place), xytext=(3, 0),
                           textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    left.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    left.set_xlabel("share of pairs: ● with the others   ◆ with known answers")
    right.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    right.set_xlim(0, 1.1)
    right.set_xlabel("reliability η (1/2 says nothing)")
    return figure


def habits_chart(crew: Sequence[AnnotatorQuality]) -> Figure:
    """One panel a habit, one row an annotator; a place without a bar has no figure."""
    figure, panels = _rows(crew, len(HABITS), "habits of annotators (red: there are reasons to doubt)", width=3.1)
    for axes, (name, title) in zip(panels, HABITS.items(), strict=True):
        for place, one in enumerate(crew):
            value = getattr(one, name)
            if value is not None:
                axes.barh(place, value, color=DOUBTFUL if one.concerns else GOOD, height=0.6)
        axes.set_xlim(-1 if name == "position_correlation" else 0, 1)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_title(title, fontsize=9)
    return figure


def _rows(crew: Sequence[AnnotatorQuality], columns: int, title: str, width: float = 4.5) -> tuple[Figure, Any]:
    """A figure whose panels share a row for each annotator, named on the left."""
    figure = Figure(figsize=(width * columns, 1.4 + 0.32 * len(crew)), layout="constrained")
    panels = figure.subplots(1, columns, sharey=True)
    figure.suptitle(title, fontsize=11)
    panels[0].set_yticks(range(len(crew)), [f"{one.annotator_id} ({one.judgements})" for one in crew])
    panels[0].set_ylabel("annotator (judgements)")
    panels[0].invert_yaxis()
    for axes in panels:
        axes.grid(axis="x", alpha=0.25)
    return figure, panels


def _interval(axes: Any, rate: Rate, place: float, style: dict[str, Any]) -> None:
    if rate.share is not None and rate.low is not None and rate.high is not None:
        error = [[max(0.0, rate.share - rate.low)], [max(0.0, rate.high - rate.share)]]
        axes.errorbar(rate.share, place, xerr=error, capsize=2, **style)
