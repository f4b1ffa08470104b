"""What the status page shows of a project: its status, every judgement's time, and how its annotators work."""

from collections.abc import Collection
from datetime import datetime

from labeling.config import QualityOptions
from labeling.judgements.parse import parse
from labeling.quality.agreement import Agreement
from labeling.quality.annotators import AnnotatorQuality
from labeling.quality.assess import assess
from labeling.reports.status import ProjectStatus, project_status, tasks_of
from labeling.store.store import Store
from labeling.store.versions import SeenProject, Values, moment
from labeling.tasks.gold import Answers


class ProjectReport(Values):
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
    chosen = [one for one in store.projects() if not only or one.number in only]
    return [project_report(store, one, options or QualityOptions(), answers) for one in reversed(chosen)]


def project_report(
    store: Store, project: SeenProject, options: QualityOptions, answers: Answers | None = None
) -> ProjectReport:
    """One project as of its last sync."""
    rows = store.current(project.project)
    tasks, said = tasks_of(project, rows), [raw for row in rows for raw in row["annotations"]]
    parsed = parse(rows, tasks.values(), project.overlap, "")
    assessed = assess(parsed.judgements, tasks, parsed.skips, options, answers)
    shown = project_status(store, project)
    return ProjectReport(
        status=shown,
        times=tuple(sorted(moment(raw["created_at"]) for raw in said if not raw["was_cancelled"])),
        agreement=assessed.agreement,
        crew=tuple(sorted(assessed.quality, key=lambda one: (-one.judgements, one.annotator_id))),
        names={str(one.annotator): one.name for one in shown.annotators if one.name},
    )
