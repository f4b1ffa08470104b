"""What a team lead does today about a collection: questions, disputed tasks, annotations that do
not count, quiet annotators.

A pure function of the report and the time, with links into Label Studio, for the page, the terminal and servers of it.
"""

from collections.abc import Iterator
from datetime import date, datetime, timedelta, tzinfo

from alignment.records import Record
from labeling.reports.report import ProjectReport, SetAsideAnnotation

QUIET_AFTER = timedelta(hours=24)
PROMPT_CHARACTERS = 120
DAYS = 14


class Item(Record):
    """One thing to look at, with its address in Label Studio; "" if it has none."""

    text: str
    url: str = ""


class SetAside(Record):
    """Annotations that do not count for the same reason."""

    reason: str
    items: tuple[Item, ...]


class Day(Record):
    """Judgements of one day by annotator id."""

    day: date
    judgements: dict[str, int]


class Today(Record):
    """The list of today, and who judged how much on which day, the newest day first."""

    questions: tuple[Item, ...] = ()
    disputed: tuple[Item, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    quiet: tuple[Item, ...] = ()
    days: tuple[Day, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.questions or self.disputed or self.set_aside or self.quiet)


def today(report: ProjectReport, now: datetime, zone: tzinfo | None = None) -> Today:
    """The list of `now`; days are those of `zone`, by default of this machine."""
    return Today(
        questions=tuple(_questions(report)),
        disputed=tuple(_disputed(report)),
        set_aside=tuple(_set_aside(report)),
        quiet=tuple(_quiet(report, now)),
        days=_days(report, zone),
    )


def project_url(report: ProjectReport) -> str:
    """The project's address in Label Studio; "" for one that was deleted, or whose address is no web address."""
    status = report.status
    web = status.url.startswith(("http://", "https://")) and not status.deleted
    return f"{status.url}/projects/{status.number}/data" if web else ""


def _task_url(report: ProjectReport, task: int | None) -> str:
    project = project_url(report)
    return f"{project}?task={task}" if project and task is not None else ""


def name_of_annotator(report: ProjectReport, annotator: object) -> str:
    """The annotator's name, else the address of the invitation, else the account's number."""
    known = report.names.get(str(annotator))
    return known or (report.invited.get(annotator, "") if isinstance(annotator, int) else "") or f"account {annotator}"


def _questions(report: ProjectReport) -> Iterator[Item]:
    for row in report.questions:
        who, when = name_of_annotator(report, row.annotator_id), f"{row.asked_at.astimezone():%Y-%m-%d %H:%M}"
        skipped = ", and skipped it" if row.skipped else ""
        yield Item(text=f"task {row.task}, {who}, {when}{skipped}: “{row.text}”", url=_task_url(report, row.task))


def _disputed(report: ProjectReport) -> Iterator[Item]:
    for row in report.disputes:
        people = ", ".join(name_of_annotator(report, annotator) for annotator in row.annotator_ids)
        size = f"{row.distance:.0%} of the pairs" if row.distance <= 1 else f"{row.distance:.0f} steps apart"
        prompt = " ".join(row.prompt.split())
        shown = prompt[:PROMPT_CHARACTERS] + ("…" if len(prompt) > PROMPT_CHARACTERS else "")
        yield Item(text=f"task {row.task}, {size}: {people}: “{shown}”", url=_task_url(report, row.task))


def _set_aside(report: ProjectReport) -> Iterator[SetAside]:
    """The reasons, the most frequent first."""
    by_reason: dict[str, list[SetAsideAnnotation]] = {}
    for row in report.aside:
        by_reason.setdefault(row.reason, []).append(row)
    for reason, rows in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        items = (
            Item(
                text=f"annotation {row.annotation} of {row.name or name_of_annotator(report, row.annotator)}",
                url=_task_url(report, row.task),
            )
            for row in rows
        )
        yield SetAside(reason=reason, items=tuple(items))


def _quiet(report: ProjectReport, now: datetime) -> Iterator[Item]:
    """People who judged nothing for a day, or nothing at all, while there is work; the longest silence first."""
    status = report.status
    if status.deleted or status.done >= status.needed or (report.origin and report.origin.annotators == "simulated"):
        return
    last = {annotator: time for time, annotator in report.judged}
    for number in report.invited:
        if str(number) not in last:
            yield Item(text=f"{name_of_annotator(report, number)} has judged nothing here yet")
    for annotator, time in sorted(last.items(), key=lambda pair: pair[1]):
        if now - time > QUIET_AFTER:
            days, name = (now - time) // timedelta(days=1), name_of_annotator(report, annotator)
            ago = f"{days} day{'s' if days > 1 else ''} ago"
            yield Item(text=f"{name} judged last on {time.astimezone():%Y-%m-%d %H:%M}, {ago}")


def _days(report: ProjectReport, zone: tzinfo | None) -> tuple[Day, ...]:
    by_day: dict[date, dict[str, int]] = {}
    for time, annotator in report.judged:
        counts = by_day.setdefault(time.astimezone(zone).date(), {})
        counts[annotator] = counts.get(annotator, 0) + 1
    return tuple(Day(day=day, judgements=by_day[day]) for day in sorted(by_day, reverse=True)[:DAYS])


def facts(report: ProjectReport) -> str:
    """What the collection is, in one line: recipe, seed, annotators, judgements per task."""
    origin, status = report.origin, report.status
    kind = f"{status.kind or 'unknown'} tasks"
    if origin is None:
        return f"{kind}, {status.overlap} annotators per task; not opened from here, or by an earlier version"
    who = "simulated annotators" if origin.annotators == "simulated" else "people"
    return f"{kind} of recipe {origin.recipe or '-'}, seed {origin.seed}, {status.overlap} {who} per task"
