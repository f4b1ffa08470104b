"""The report on a project: status, times of judgements, agreement and annotators; the input of all views."""

from collections.abc import Collection, Container, Mapping
from datetime import datetime

from alignment.records import Record
from labeling.authors import Account, counted
from labeling.config import QualityOptions
from labeling.judgements.imports import tasks_of
from labeling.judgements.parse import parse
from labeling.names import uid_of
from labeling.quality.assess import assess
from labeling.quality.results import Agreement, AnnotatorQuality
from labeling.reopen import needed_overlaps
from labeling.reports.status import ProjectStatus, project_status
from labeling.store.store import Store
from labeling.store.versions import SeenProject, moment
from labeling.tasks.gold import Answers


class Plan(Record):
    """What was planned for a project: annotators per task, and the uids of its tasks."""

    overlap: int
    uids: frozenset[str]


Plans = dict[tuple[str, int], Plan]  # by the server's address and the project's number


class ProjectReport(Record):
    """The report on one project. `times` are those of judgements, earliest first; `names` are by annotator id.

    `set_aside` are the reasons why annotations do not count, each with the ids of the annotations.
    """

    status: ProjectStatus
    times: tuple[datetime, ...]
    agreement: Agreement
    crew: tuple[AnnotatorQuality, ...]
    names: dict[str, str]
    set_aside: dict[str, tuple[int, ...]]


def reports(
    store: Store,
    only: Collection[int] = (),
    options: QualityOptions | None = None,
    answers: Answers | None = None,
    *,
    known: Mapping[str, Container[Account]] | None = None,
    plans: Plans | None = None,
) -> list[ProjectReport]:
    """Reports on all projects in the store, or on those with the numbers `only`, newest first.

    `options` sets the limits for concerns. Without `answers`, gold tasks count as ordinary ones. Of a server in `known`
    only these accounts count. `plans` go before the settings on the server.
    """
    selected = [project for project in store.projects() if not only or project.number in only]
    return [
        project_report(
            store,
            project,
            options or QualityOptions(),
            answers,
            (known or {}).get(project.url),
            (plans or {}).get((project.url, project.number)),
        )
        for project in reversed(selected)
    ]


def project_report(
    store: Store,
    project: SeenProject,
    options: QualityOptions,
    answers: Answers | None = None,
    known: Container[Account] | None = None,
    plan: Plan | None = None,
) -> ProjectReport:
    """The report as of the last sync. Annotations are parsed and assessed once, for every view."""
    rows = store.current(project.project, known)
    if plan is not None:
        rows = [row for row in rows if uid_of(row) in plan.uids]
    overlap = project.overlap if plan is None else plan.overlap
    tasks = tasks_of(project.title, rows)
    parsed = parse(rows, tasks.values(), overlap, "")
    assessed = assess(parsed.judgements, tasks, parsed.skips, options, answers)
    status = project_status(
        project,
        rows,
        store.syncs(project.project),
        assessed.agreement,
        overlap=overlap,
        quarantined=len(parsed.quarantined),
        full=len(needed_overlaps(rows, parsed.judgements, overlap)),
        lost=len(store.lost(project.project)),
    )
    judged = (raw for row in rows for raw in counted(row["annotations"]) if not raw["was_cancelled"])
    reasons: dict[str, tuple[int, ...]] = {}
    for row in parsed.quarantined:
        reasons[row.reason] = (*reasons.get(row.reason, ()), row.line)
    return ProjectReport(
        status=status,
        times=tuple(sorted(moment(raw["created_at"]) for raw in judged)),
        agreement=assessed.agreement,
        crew=tuple(sorted(assessed.quality, key=lambda annotator: (-annotator.judgements, annotator.annotator_id))),
        names={str(annotator.annotator): annotator.name for annotator in status.annotators if annotator.name},
        set_aside=reasons,
    )
