"""The status of a project: progress, pace, expected end, agreement, and the work of each annotator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from alignment.records import Record
from labeling.authors import Account, author, judges, owner
from labeling.names import title_of
from labeling.quality.results import Agreement, Rate
from labeling.store.versions import SeenProject, Sync, moment

PACE_WINDOW = timedelta(hours=24)
SHORTEST_WINDOW = timedelta(minutes=1)


class AnnotatorStatus(Record):
    """One annotator's work: judgements (valid or not), skips, and median seconds per judgement.

    `name` is as on the server: first and last name, and the e-mail address.
    """

    annotator: Account | None
    name: str
    judgements: int
    skips: int
    median_seconds: float | None


class ProjectStatus(Record):
    """One project. `done` counts at most the overlap per task; `lost` counts annotations deleted on the server.

    `per_hour` is over the 24 hours before the last sync, or since the first judgement if that is later; `expected_end`
    is when all would be done at that pace, None without recent judgements. `quarantined` counts annotations that could
    not be parsed. `screen_changed`: the label config was edited on the server.
    """

    title: str
    number: int
    url: str
    deleted: bool
    tasks: int
    done: int
    needed: int
    per_hour: float
    expected_end: datetime | None
    agreement: Rate
    alpha: float | None
    annotators: tuple[AnnotatorStatus, ...]
    quarantined: int
    lost: int
    screen_changed: bool
    last_sync: datetime | None


def project_status(
    project: SeenProject,
    rows: Sequence[Mapping[str, Any]],
    syncs: Sequence[Sync],
    agreement: Agreement,
    *,
    quarantined: int,
    lost: int,
) -> ProjectStatus:
    """The status of one project as of its last sync. `rows` are its tasks with their annotations, as in the store."""
    annotations = [raw for row in rows for raw in row["annotations"]]
    judged = [raw for raw in annotations if not raw["was_cancelled"]]
    done = sum(min(judges(row["annotations"]), project.overlap) for row in rows)
    needed = len(rows) * project.overlap
    now = syncs[-1].seen_at if syncs else None
    per_hour = pace([moment(raw["created_at"]) for raw in judged], now) if now else 0.0
    remaining = timedelta(hours=(needed - done) / per_hour) if per_hour else None
    title = title_of(project.title)
    return ProjectStatus(
        title=project.title,
        number=project.number,
        url=project.url,
        deleted=project.deleted,
        tasks=len(rows),
        done=done,
        needed=needed,
        per_hour=per_hour,
        expected_end=now + remaining if now and remaining is not None and not project.deleted else None,
        agreement=agreement.overall,
        alpha=agreement.alpha,
        annotators=annotator_statuses(annotations),
        quarantined=quarantined,
        lost=lost,
        screen_changed=title is not None and title.screen_hash != project.config_hash,
        last_sync=now,
    )


def pace(times: Sequence[datetime], now: datetime) -> float:
    """Judgements per hour in the 24 hours before `now`, or since the first one if that is later."""
    recent = [time for time in times if time > now - PACE_WINDOW]
    if not recent:
        return 0.0
    start = max(min(times), now - PACE_WINDOW)
    return len(recent) / (max(now - start, SHORTEST_WINDOW) / timedelta(hours=1))


def annotator_statuses(annotations: Sequence[Mapping[str, Any]]) -> tuple[AnnotatorStatus, ...]:
    """Annotators who judged or skipped, by falling number of judgements."""
    by_person: dict[Account | None, list[Mapping[str, Any]]] = defaultdict(list)
    for raw in annotations:
        by_person[author(raw)].append(raw)
    statuses = []
    for person, own in by_person.items():
        first_hand = [raw for raw in own if owner(raw) == person]  # the others tell the name and time of someone else
        times = [raw["lead_time"] for raw in first_hand if raw.get("lead_time") and not raw["was_cancelled"]]
        skips = sum(raw["was_cancelled"] for raw in own)
        statuses.append(
            AnnotatorStatus(
                annotator=person,
                name=name_of(first_hand),
                judgements=len(own) - skips,
                skips=skips,
                median_seconds=median(times) if times else None,
            )
        )
    return tuple(sorted(statuses, key=lambda status: (-status.judgements, str(status.annotator).zfill(12))))


def name_of(own: Sequence[Mapping[str, Any]]) -> str:
    """The name in the annotator's newest annotation that has one; the server writes "Name mail, id"."""
    names = [str(raw.get("created_username") or "").rpartition(",")[0].strip() for raw in own]
    return next((name for name in reversed(names) if name), "")
