"""Progress of collections, as tables for the terminal and for Prefect's pages."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from labeling.quality.results import Rate
from labeling.reports.report import ProjectReport
from labeling.reports.today import Item, facts, project_url, today
from labeling.store.sync import SyncReport

Table = tuple[tuple[str, ...], list[list[str]]]  # columns, rows
PROJECTS = ("project", "judged", "per hour", "expected end", "agreement", "alpha", "quarantined", "last sync")
SHOWN_REASONS, SHOWN_IDS, SHOWN_ITEMS = 8, 10, 20
ANNOTATORS = (
    *("project", "annotator", "judgements", "skips", "median seconds"),
    *("agreement", "reliability", "concerns"),
)


def tables(reports: Sequence[ProjectReport]) -> list[Table]:
    """Projects, and the annotators of each. Times are those of this machine's time zone."""
    people = [row for report in reports for row in _annotator_rows(report)]
    return [(PROJECTS, [_project_row(report) for report in reports]), (ANNOTATORS, people)]


def _project_row(report: ProjectReport) -> list[str]:
    status = report.status
    judged = f"{status.done} of {status.needed} ({status.done / status.needed:.0%})" if status.needed else "no tasks"
    end = f"{status.expected_end.astimezone():%Y-%m-%d %H:%M}" if status.expected_end else "no recent activity"
    return [
        status.title + (" (deleted)" if status.deleted else ""),
        judged,
        f"{status.per_hour:.0f}",
        "done" if status.needed and status.done >= status.needed else end,
        _rate(report.agreement.overall),
        "-" if report.agreement.alpha is None else f"{report.agreement.alpha:.2f}",
        str(status.quarantined),
        f"{status.last_sync.astimezone():%Y-%m-%d %H:%M}" if status.last_sync else "never",
    ]


def _rate(rate: Rate) -> str:
    if rate.share is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _annotator_rows(report: ProjectReport) -> list[list[str]]:
    quality = {annotator.annotator_id: annotator for annotator in report.crew}
    rows = []
    for status in report.status.annotators:
        figures = quality.get(str(status.annotator))
        rows.append(
            [
                report.status.title,
                status.name or ("unknown" if status.annotator is None else f"account {status.annotator}"),
                str(status.judgements),
                str(status.skips),
                "-" if status.median_seconds is None else f"{status.median_seconds:.0f}",
                "-" if figures is None or figures.agreement.share is None else f"{figures.agreement.share:.0%}",
                "-" if figures is None or figures.reliability is None else f"{figures.reliability:.2f}",
                "" if figures is None else "; ".join(figures.concerns),
            ]
        )
    return rows


def today_lines(report: ProjectReport, now: datetime) -> Iterator[str]:
    """A collection in words: what it is, its progress, and what to look at today, with addresses."""
    status, work = report.status, today(report, now)
    yield f"{status.title}: {facts(report)}; {status.done} of {status.needed} judged; {project_url(report)}"
    if work.empty:
        yield "  nothing to look at today"
    yield from _list("disputed", work.disputed)
    for group in work.set_aside:
        yield from _list(f"set aside, {group.reason}", group.items)
    yield from _list("quiet", work.quiet)


def _list(what: str, items: Sequence[Item]) -> Iterator[str]:
    for item in items[:SHOWN_ITEMS]:
        yield f"  {what}: {item.text}" + (f"  {item.url}" if item.url else "")
    if len(items) > SHOWN_ITEMS:
        yield f"  {what}: {len(items) - SHOWN_ITEMS} more; `rlhf label status NAME --html FILE` lists all"


def links(reports: Sequence[ProjectReport]) -> dict[str, str]:
    """Where people work, by the title of the project."""
    rows = [report.status for report in reports if not report.status.deleted]
    return {row.title: f"{row.url}/projects/{row.number}/data?labeling=1" for row in rows}


def hints(reports: Sequence[ProjectReport]) -> list[str]:
    """Next steps, with the addresses where people work."""
    rows, urls = [report.status for report in reports], links(reports)
    return [
        *(
            f"people work on {row.title} at {urls[row.title]}"
            for row in rows
            if row.title in urls and row.done < row.needed
        ),
        *(
            f"{row.lost} annotations of {row.title} were deleted on the server and are kept in the store"
            for row in rows
            if row.lost
        ),
        *(
            f"the screen of {row.title} was edited on the server: restore it, or change "
            "labeling.guidelines and run again, which opens another collection"
            for row in rows
            if row.screen_changed and not row.deleted
        ),
        *(
            f"{row.title} asks for {row.overlap_on_server} annotators a task on the server: the planned {row.overlap} "
            "count"
            for row in rows
            if row.overlap != row.overlap_on_server and not row.deleted
        ),
        *(
            f"{row.full} tasks of {row.title} are full with annotations that do not count: a run that waits for people "
            "has Label Studio offer them again"
            for row in rows
            if row.full and not row.deleted
        ),
        *(line for report in reports for line in _set_aside(report)),
    ]


def _set_aside(report: ProjectReport) -> list[str]:
    """Why annotations do not count, the most frequent reasons first."""
    title, reasons = report.status.title, sorted(report.set_aside.items(), key=lambda item: -len(item[1]))
    lines = [
        f"{len(ids)} annotations of {title} are set aside ({', '.join(map(str, ids[:SHOWN_IDS]))}"
        f"{', …' if len(ids) > SHOWN_IDS else ''}): {reason}"
        for reason, ids in reasons[:SHOWN_REASONS]
    ]
    rest = sum(len(ids) for _, ids in reasons[SHOWN_REASONS:])
    return lines + ([f"{rest} more annotations of {title} are set aside for other reasons"] if rest else [])


def remarks(report: SyncReport) -> list[str]:
    """What was set aside in a sync, and settings on the server that differ from ours."""
    lines: list[str] = []
    for result in report.synced:
        title = result.project.title
        lines += [f"the screen of project {title} was edited since the last sync"] if result.config_changed else []
        lines += [f"a setting of project {title} was changed on the server: {text}" for text in result.settings]
        lines += [f"task {task} of project {title} was not read: {why}" for task, why in result.unreadable.items()]
        aside = list(result.set_aside.items())
        lines += [f"annotation {number} of project {title} was set aside: {why}" for number, why in aside[:SHOWN_IDS]]
        lines += [f"{len(aside) - SHOWN_IDS} more of project {title} were set aside"] if len(aside) > SHOWN_IDS else []
    return lines
