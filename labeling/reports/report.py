"""What the status page shows of a project: its status, every judgement's time, and how its annotators work."""

from collections.abc import Collection
from datetime import datetime

from alignment.records import Record
from labeling.config import QualityOptions
from labeling.judgements.imports import tasks_of
from labeling.judgements.parse import parse
from labeling.quality.assess import assess
from labeling.quality.results import Agreement, AnnotatorQuality
from labeling.reports.status import ProjectStatus, project_status
from labeling.store.store import Store
from labeling.store.versions import SeenProject, moment
from labeling.tasks.gold import Answers


class ProjectReport(Record):
    """One project. `times` are those of the judgements, the earliest first; `names` are by annotator id."""

    status: ProjectStatus
    times: tuple[datetime, ...]
    agreement: Agreement
    crew: tuple[AnnotatorQuality, ...]
    names: dict[str, str]


def reports(
    store: Store, only: Collection[int] = (), options: QualityOptions | None = None, answers: Answers | None = None
) -> list[ProjectReport]:
    """Every project that the store knows, or those of the given numbers, the newest first.

    Concerns are by the limits of `options`. Without the `answers` of gold tasks these count as all others.
    """
    chosen = [project for project in store.projects() if not only or project.number in only]
    return [project_report(store, project, options or QualityOptions(), answers) for project in reversed(chosen)]


def project_report(
    store: Store, project: SeenProject, options: QualityOptions, answers: Answers | None = None
) -> ProjectReport:
    """One project as of its last sync: its annotations are parsed and assessed once, for status, page and table."""
    rows = store.current(project.project)
    tasks = tasks_of(project.title, rows)
    parsed = parse(rows, tasks.values(), project.overlap, "")
    assessed = assess(parsed.judgements, tasks, parsed.skips, options, answers)
    status = project_status(
        project,
        rows,
        store.syncs(project.project),
        assessed.agreement,
        quarantined=len(parsed.quarantined),
        lost=len(store.lost(project.project)),
    )
    judged = (raw for row in rows for raw in row["annotations"] if not raw["was_cancelled"])
    return ProjectReport(
        status=status,
        times=tuple(sorted(moment(raw["created_at"]) for raw in judged)),
        agreement=assessed.agreement,
        crew=tuple(sorted(assessed.quality, key=lambda annotator: (-annotator.judgements, annotator.annotator_id))),
        names={str(annotator.annotator): annotator.name for annotator in status.annotators if annotator.name},
    )
