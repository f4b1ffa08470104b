"""The report on a project: status, times of judgements, agreement and annotators; the input of all views."""

from collections.abc import Collection, Container, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from alignment.records import Record, Rejected
from labeling.authors import Account, author, counted, owner
from labeling.config import QualityOptions
from labeling.judgements.controls import controls_of
from labeling.judgements.imports import tasks_of
from labeling.judgements.judgement import Question
from labeling.judgements.parse import parse
from labeling.names import uid_of
from labeling.quality.assess import assess
from labeling.quality.results import Agreement, AnnotatorQuality
from labeling.quality.screening import Dispute
from labeling.reopen import needed_overlaps
from labeling.reports.status import ProjectStatus, name_of, project_status
from labeling.store.store import Store
from labeling.store.versions import SeenProject, moment
from labeling.tasks.gold import Answers
from labeling.tasks.projects import Origin, Project


class Plan(Record):
    """What was planned for a project: annotators per task, the uids of its tasks, and the accounts that count.

    `invited` are e-mail addresses of people by account, `project` is the project as it was opened.
    """

    overlap: int
    uids: frozenset[str]
    known: frozenset[Account] | None = None
    invited: dict[int, str] = Field(default_factory=dict)
    project: Project | None = None


Plans = dict[tuple[str, int], Plan]  # by the server's address and the project's number


class DisputedTask(Record):
    """A task on which annotators disagree strongly: its number on the server, and who judged it."""

    task: int
    prompt: str
    distance: float
    annotator_ids: tuple[str, ...]


class AskedQuestion(Record):
    """What an annotator asked the team lead, with the task's number on the server."""

    task: int
    annotator_id: str
    asked_at: datetime
    text: str
    skipped: bool


class SetAsideAnnotation(Record):
    """An annotation that does not count, with its task's number and the reason."""

    annotation: int
    task: int | None
    annotator: Account | None
    name: str
    reason: str


class ProjectReport(Record):
    """The report on one project. `judged` are the times of judgements with the annotators' ids, the earliest first;
    `names` are by annotator id.

    `invited` are e-mail addresses by account, `origin` is what the collection was opened for, where it is known.
    `questions` are those to the team lead, `guidelines` is the version that annotators saw.
    """

    status: ProjectStatus
    judged: tuple[tuple[datetime, str], ...]
    agreement: Agreement
    crew: tuple[AnnotatorQuality, ...]
    names: dict[str, str]
    aside: tuple[SetAsideAnnotation, ...] = ()
    disputes: tuple[DisputedTask, ...] = ()
    invited: dict[int, str] = Field(default_factory=dict)
    origin: Origin | None = None
    questions: tuple[AskedQuestion, ...] = ()
    guidelines: str = ""

    @property
    def times(self) -> tuple[datetime, ...]:
        """The times of judgements, the earliest first."""
        return tuple(time for time, _ in self.judged)

    @property
    def set_aside(self) -> dict[str, tuple[int, ...]]:
        """The reasons why annotations do not count, each with the ids of the annotations."""
        reasons: dict[str, tuple[int, ...]] = {}
        for row in self.aside:
            reasons[row.reason] = (*reasons.get(row.reason, ()), row.annotation)
        return reasons


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

    `options` sets the limits for concerns. Without `answers`, gold tasks count as ordinary ones. `plans` go before the
    settings on the server; where one does not say whose judgements count, those of the server's accounts `known` do.
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


def planned_rows(
    store: Store, project: SeenProject, plan: Plan | None, known: Container[Account] | None = None
) -> list[dict[str, Any]]:
    """The planned tasks of a project with their annotations; those that do not count are set aside."""
    rows = store.current(project.project, known if plan is None or plan.known is None else plan.known)
    return rows if plan is None else [row for row in rows if uid_of(row) in plan.uids]


def project_report(
    store: Store,
    project: SeenProject,
    options: QualityOptions,
    answers: Answers | None = None,
    known: Container[Account] | None = None,
    plan: Plan | None = None,
) -> ProjectReport:
    """The report as of the last sync. Annotations are parsed and assessed once, for every view."""
    rows = planned_rows(store, project, plan, known)
    overlap = project.overlap if plan is None else plan.overlap
    tasks = tasks_of(rows)
    controls = controls_of(project.config)
    parsed = parse(rows, tasks.values(), overlap, "", controls)
    assessed = assess(parsed.judgements, tasks, parsed.skips, options, answers)
    opened = None if plan is None else plan.project
    status = project_status(
        project,
        rows,
        store.syncs(project.project),
        assessed.agreement,
        overlap=overlap,
        quarantined=len(parsed.quarantined),
        full=len(needed_overlaps(rows, parsed.judgements, overlap)),
        lost=len(store.lost(project.project)),
        screen_hash=store.first_screen(project.project) if opened is None else opened.screen_hash,
    )
    judged = (raw for row in rows for raw in counted(row["annotations"]) if not raw["was_cancelled"])
    return ProjectReport(
        status=status,
        judged=tuple(sorted((moment(raw["created_at"]), str(author(raw))) for raw in judged)),
        agreement=assessed.agreement,
        crew=tuple(sorted(assessed.quality, key=lambda annotator: (-annotator.judgements, annotator.annotator_id))),
        names={str(annotator.annotator): annotator.name for annotator in status.annotators if annotator.name},
        aside=tuple(map(_set_aside, parsed.quarantined)),
        disputes=_disputed_tasks(assessed.disputes, rows),
        invited={} if plan is None else plan.invited,
        origin=None if opened is None else opened.origin,
        questions=_asked(parsed.questions, rows),
        guidelines=controls.guidelines,
    )


def _asked(questions: Sequence[Question], rows: Sequence[Mapping[str, Any]]) -> tuple[AskedQuestion, ...]:
    """The questions to the team lead, the newest first."""
    numbers = {uid_of(row): int(row["id"]) for row in rows}
    asked = [
        AskedQuestion(
            task=numbers[question.task_uid],
            annotator_id=question.annotator_id,
            asked_at=moment(question.asked_at),
            text=question.text,
            skipped=question.skipped,
        )
        for question in questions
    ]
    return tuple(sorted(asked, key=lambda question: question.asked_at, reverse=True))


def _set_aside(row: Rejected) -> SetAsideAnnotation:
    raw = row.row if isinstance(row.row, Mapping) else {}
    task, person = raw.get("task"), author(raw)
    return SetAsideAnnotation(
        annotation=row.line,
        task=task if isinstance(task, int) else None,
        annotator=person,
        name=name_of([raw]) if owner(raw) == person else "",
        reason=row.reason,
    )


def _disputed_tasks(disputes: Sequence[Dispute], rows: Sequence[Mapping[str, Any]]) -> tuple[DisputedTask, ...]:
    """The disputed tasks, the most disputed first."""
    numbers = {uid_of(row): int(row["id"]) for row in rows}
    ordered = sorted(disputes, key=lambda dispute: (-dispute.distance, dispute.task_uid))
    return tuple(
        DisputedTask(
            task=numbers[dispute.task_uid],
            prompt=dispute.prompt,
            distance=dispute.distance,
            annotator_ids=dispute.annotator_ids,
        )
        for dispute in ordered
    )
