"""The status of a project: progress, pace, expected end, agreement, and the work of each annotator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from alignment.records import Record
from labeling.authors import Account, author, counted, judges, owner
from labeling.config import Kind
from labeling.judgements.imports import kind_of
from labeling.judgements.parse import LONGEST_SECONDS
from labeling.names import uid_of
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
    not be parsed or do not count, and `full` the tasks that they fill. `overlap` was planned, `overlap_on_server` is
    its setting now. `screen_changed`: the label config was edited on the server.
    """

    title: str
    kind: Kind | None = None
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
    full: int = 0
    lost: int
    overlap: int
    overlap_on_server: int
    screen_changed: bool
    last_sync: datetime | None


def project_status(
    project: SeenProject,
    rows: Sequence[Mapping[str, Any]],
    syncs: Sequence[Sync],
    agreement: Agreement,
    *,
    overlap: int,
    quarantined: int,
    full: int,
    lost: int,
    screen_hash: str,
) -> ProjectStatus:
    """The status of one project as of its last sync. `rows` are its tasks with their annotations, as in the store.

    `overlap` annotators per task and the screen with this hash were planned, whatever the server says.
    """
    annotations = [raw for row in rows for raw in counted(row["annotations"])]
    judged = [raw for raw in annotations if not raw["was_cancelled"]]
    total = tally(rows, overlap)
    done, needed = total.done, total.needed
    now = syncs[-1].seen_at if syncs else None
    per_hour = pace([moment(raw["created_at"]) for raw in judged], now) if now else 0.0
    remaining = timedelta(hours=(needed - done) / per_hour) if per_hour else None
    return ProjectStatus(
        title=project.title,
        kind=next((kind_of(row["data"]) for row in rows if uid_of(row)), None),
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
        full=full,
        lost=lost,
        overlap=overlap,
        overlap_on_server=project.overlap,
        screen_changed=screen_hash != project.config_hash,
        last_sync=now,
    )


class Tally(Record):
    """Judgements done and needed, the number of people who made them, and the time of the last one."""

    done: int
    needed: int
    people: int
    last: datetime | None


def tally(rows: Sequence[Mapping[str, Any]], overlap: int) -> Tally:
    """Count the judgements of tasks, at most `overlap` of each. Annotations that are set aside do not count."""
    judged = [raw for row in rows for raw in counted(row["annotations"]) if not raw.get("was_cancelled")]
    return Tally(
        done=sum(min(judges(row["annotations"]), overlap) for row in rows),
        needed=len(rows) * overlap,
        people=len({author(raw) for raw in judged}),
        last=max((moment(raw["created_at"]) for raw in judged), default=None),
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
        times = [raw["lead_time"] for raw in first_hand if believable(raw) and not raw["was_cancelled"]]
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


def believable(raw: Mapping[str, Any]) -> bool:
    """Whether the time of an annotation is a time that a person can take."""
    return 0.0 < (raw.get("lead_time") or 0.0) <= LONGEST_SECONDS


def name_of(own: Sequence[Mapping[str, Any]]) -> str:
    """The name in the annotator's newest annotation that has one; the server writes "Name mail, id"."""
    names = [str(raw.get("created_username") or "").rpartition(",")[0].strip() for raw in own]
    return next((name for name in reversed(names) if name), "")
