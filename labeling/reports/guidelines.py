"""Agreement before and after a change of guidelines, in collections of one recipe and kind of task."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from alignment.records import Record
from labeling.quality.results import Rate
from labeling.reports.report import ProjectReport


class Period(Record):
    """The judgements that were made with one version of the guidelines, the first and the last of them."""

    collection: str
    guidelines: str
    judgements: int
    first: datetime
    last: datetime
    agreement: Rate
    alpha: float | None
    criteria: dict[str, Rate]


def periods(reports: Sequence[ProjectReport]) -> list[list[Period]]:
    """For each recipe and kind of task whose guidelines changed, its periods, the earliest first."""
    groups: dict[tuple[str, str], list[ProjectReport]] = defaultdict(list)
    for report in reports:
        if report.judged and report.guidelines:
            recipe = report.origin.recipe if report.origin else report.status.title
            groups[recipe, str(report.status.kind)].append(report)
    changed = (rows for rows in groups.values() if len({row.guidelines for row in rows}) > 1)
    return [sorted(map(_period, rows), key=lambda period: period.first) for rows in changed]


def _period(report: ProjectReport) -> Period:
    agreement = report.agreement
    return Period(
        collection=report.status.title,
        guidelines=report.guidelines,
        judgements=len(report.judged),
        first=report.times[0],
        last=report.times[-1],
        agreement=agreement.overall,
        alpha=agreement.alpha,
        criteria={name: rate for name, rate in agreement.criteria.items() if rate.share is not None},
    )
