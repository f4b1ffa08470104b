"""Annotation effort: seconds per judgement as measured in the store, and hours for planned tasks."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, get_args

from alignment.records import Record
from labeling.authors import CREW, counted
from labeling.config import Kind
from labeling.judgements.imports import kind_of
from labeling.names import uid_of
from labeling.store.store import Store

LONGEST = 1800.0
ENOUGH = 20
ASSUMED: Mapping[Kind, float] = {"ranking": 240.0, "pairwise": 120.0, "demonstration": 600.0}


class Pace(Record):
    """Seconds per judgement, from `measured` judgements; with 0 the pace is an assumption."""

    seconds: float
    measured: int = 0


def measured_paces(store: Store) -> dict[Kind, Pace]:
    """The pace of each kind of task, over all projects in the store.

    The mean rather than the median, since hours are a sum; a page left open counts as at most half an hour. Simulated
    annotators are left out. With fewer than 20 judgements the pace is an assumption.
    """
    times: dict[Kind, list[float]] = {kind: [] for kind in get_args(Kind)}
    for project in store.projects():
        for row in store.current(project.project):
            if uid_of(row):
                times[kind_of(row["data"])] += lead_times([row])
    return {kind: pace(kind, seconds) for kind, seconds in times.items()}


def lead_times(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds per judgement of people; simulated annotators are left out."""
    return [
        float(raw["lead_time"])
        for row in rows
        for raw in counted(row["annotations"])
        if (raw.get("lead_time") or 0.0) > 0.0
        and not raw["was_cancelled"]
        and CREW not in str(raw.get("created_username"))
    ]


def pace(kind: Kind, times: Sequence[float]) -> Pace:
    """The mean of the times, each at most half an hour; an assumption if there are fewer than 20."""
    if len(times) < ENOUGH:
        return Pace(seconds=ASSUMED[kind])
    return Pace(seconds=fmean(min(time, LONGEST) for time in times), measured=len(times))


def hours(tasks: Mapping[Kind, int], overlap: Mapping[Kind, int], paces: Mapping[Kind, Pace]) -> dict[Kind, float]:
    """Hours of work by kind: tasks · overlap · seconds / 3600."""
    return {kind: count * overlap[kind] * paces[kind].seconds / 3600 for kind, count in tasks.items()}
