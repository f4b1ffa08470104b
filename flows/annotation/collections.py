"""Collections by name: which ones this home knows, what is judged in each, and by whom."""

import re
from collections.abc import Sequence
from datetime import datetime

from alignment.artifacts import Artifact
from alignment.errors import ConfigError
from flows.annotation.planned import plans, plans_of
from labeling.collection import Collection, read_collection
from labeling.config import Annotators
from labeling.reports.report import Plan, ProjectReport, planned_rows
from labeling.reports.status import Tally, tally
from labeling.store.store import Store
from labeling.store.versions import SeenProject

COLUMNS = ("collection", "recipe", "seed", "kind", "annotators", "judged", "disputed", "who", "last judged")
SHOWN_NAMES = 4


def find_numbers(words: Sequence[str], projects: Sequence[SeenProject]) -> list[int]:
    """The numbers of the projects that a name means: the one with this name, else all that have these words.

    Without words all are meant: the result is empty. A project's number is a name, too. Raises ConfigError for a name
    that means none.
    """
    if not words:
        return []
    name_words = _words(" ".join(words))
    there = [project for project in projects if not project.deleted] or projects
    if len(name_words) == 1 and name_words[0].isdecimal():
        return [int(name_words[0])]
    named = [project for project in there if _words(project.title) == name_words]
    matching = named or [project for project in projects if {*name_words} <= {*_words(project.title)}]
    if not matching:
        names = ", ".join(project.title for project in there) or "none yet"
        raise ConfigError(
            f"no collection is named {' '.join(words)!r}; `rlhf label sync` reads new ones; known: {names}"
        )
    return [project.number for project in matching]


def _words(name: str) -> list[str]:
    """The words of a name, in lower case and without punctuation, so that it is typed without quotes."""
    return re.findall(r"\w+", name.lower())


def table(reports: Sequence[ProjectReport]) -> list[list[str]]:
    """One row (COLUMNS) for each collection."""
    return [_row(report) for report in reports]


def _row(report: ProjectReport) -> list[str]:
    status, origin = report.status, report.origin
    judged = f"{status.done} of {status.needed}" + (f" ({status.done / status.needed:.0%})" if status.needed else "")
    names = [row.name or f"account {row.annotator}" for row in status.annotators if row.judgements]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return [
        status.title + (" (deleted)" if status.deleted else ""),
        origin.recipe if origin else "",
        str(origin.seed) if origin else "",
        status.kind or "",
        _annotators(origin.annotators, status.overlap)
        if origin
        else f"{status.overlap} per task, not opened from here",
        judged,
        str(len(report.disputes)),
        ", ".join(names[:SHOWN_NAMES]) + more,
        _local(max(report.times)) if report.times else "never",
    ]


def _annotators(annotators: Annotators, overlap: int) -> str:
    return f"{overlap} {'simulated annotators' if annotators == 'simulated' else 'people'} per task"


def _local(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M}"


def already_judged(store: Store, collection: Collection) -> list[str]:
    """Sentences on what is judged of a collection, as of the last sync, and in other collections of the recipe."""
    ours, known = plans_of(collection), plans()
    lines = []
    for place, plan in ours.items():
        lines.append(_standing(plan, _tally(store, place, plan)))
        for other_place, other in known.items():
            count = _tally(store, other_place, other) if other_place not in ours and _related(plan, other) else None
            if count is not None and count.done:
                lines.append(_elsewhere(other, count))
    return lines


def _tally(store: Store, place: tuple[str, int], plan: Plan) -> Tally:
    url, number = place
    project = store.project(number, url)
    return tally([] if project is None else planned_rows(store, project, plan), plan.overlap)


def _related(plan: Plan, other: Plan) -> bool:
    """Whether another collection could be taken for this one: of the same recipe and kind, or with the same tasks."""
    ours, theirs = plan.project, other.project
    if ours is None or theirs is None or ours.kind != theirs.kind:
        return False
    same_recipe = ours.origin is not None and theirs.origin is not None and ours.origin.recipe == theirs.origin.recipe
    return same_recipe or bool(plan.uids & other.uids)


def _standing(plan: Plan, count: Tally) -> str:
    assert plan.project is not None
    if not count.done or count.last is None:
        return f"{plan.project.title}: nothing is judged yet, {len(plan.uids) * plan.overlap} judgements are asked for"
    who = _number(count.people, plan)
    return f"{plan.project.title}: {count.done} of {count.needed} were judged by {who}, last on {_local(count.last)}"


def _elsewhere(other: Plan, count: Tally) -> str:
    assert other.project is not None
    number = f"{count.done} of {count.needed}"
    return f"{number} in {other.project.title}, by {_number(count.people, other)}, are another collection"


def _number(people: int, plan: Plan) -> str:
    origin = None if plan.project is None else plan.project.origin
    if origin is None:
        return f"{people} annotator{'s' if people != 1 else ''}"
    if origin.annotators == "simulated":
        return f"{people} simulated annotator{'s' if people != 1 else ''}"
    return f"{people} {'people' if people != 1 else 'person'}"


def collected(artifact: Artifact) -> str:
    """What a finished labelling stage has, and from whom."""
    figures, batches = artifact.result(), read_collection(artifact.path).batches
    crew = {batch.project.origin.annotators for batch in batches if batch.project.origin} == {"simulated"}
    who = f"{figures['annotators']:.0f} {'simulated annotators' if crew else 'annotators'}"
    return f"{figures['judgements']:.0f} judgements by {who} in {', '.join(batch.project.title for batch in batches)}"
