"""The status page: one HTML file without scripts or external resources, for light and dark mode, all text escaped.

It shows one collection at a time, the first one unless the address names another (`#collection-3`). Times are those of
the machine's time zone.
"""

import io
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from labeling.quality.results import AnnotatorQuality, Rate
from labeling.reports.figures import answers_chart, habits_chart, progress_chart
from labeling.reports.guidelines import Period, periods
from labeling.reports.report import ProjectReport
from labeling.reports.today import Item, Today, facts, name_of_annotator, project_url, today

INK = "#102030"  # replaced by the page's text colour
INKED: dict[Any, str] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
)
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --good: #2f6fb3; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 24px;
       background: light-dark(#fff, #16181c); color: light-dark(#1b1f24, #e6e8eb); }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 4px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
a { color: light-dark(#1f5fa8, #82b4ee); } .quiet { opacity: .7; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px; margin: 12px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 16px; font-weight: 600; } .tile span { font-size: 13px; opacity: .75; }
progress { width: 100%; height: 8px; appearance: none; border: 0; background: var(--line); }
progress::-webkit-progress-bar { background: var(--line); }
progress::-webkit-progress-value { background: var(--good); } progress::-moz-progress-bar { background: var(--good); }
figure { margin: 14px 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.day { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 6px 10px; }
nav a { display: block; border: 1px solid var(--line); border-radius: 8px; padding: 6px 12px; text-decoration: none; }
nav small { display: block; opacity: .75; }
main > section { display: none; } main > section:target { display: block; }
main:not(:has(> section:target)) > section:first-of-type { display: block; }
.today { border: 1px solid var(--line); border-radius: 8px; padding: 4px 18px 14px; margin: 14px 0; }
.today h3 { margin-top: 12px; } .today h4 { font-size: 15px; margin: 12px 0 2px; }
.today ul { margin: 4px 0; padding-left: 22px; overflow-wrap: anywhere; }
.doubt { color: light-dark(#b3261e, #ff9a8f); } .note { border-left: 3px solid currentColor; padding-left: 10px; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
OPEN_ITEMS = 10  # lists of more are folded


def status_page(reports: Sequence[ProjectReport], now: datetime | None = None) -> str:
    """The status page for the reports, in their order."""
    time = now or datetime.now(UTC)
    with matplotlib.rc_context(INKED):
        sections = "".join(_collection(report, time) for report in reports)
    changes = "".join(map(_periods, periods(reports)))
    body = (
        f"{_navigation(reports, time)}<main>{sections}</main>{changes}"
        if reports
        else "<p>No collections are known yet.</p>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Labeling status</title><style>{STYLE}</style></head>\n<body><h1>Labeling status</h1>"
        f'<p class="quiet">generated {_time(time)} {escape(time.astimezone().tzname() or "")}; '
        f"intervals are 95 %</p>{body}</body></html>\n"
    )


def _navigation(reports: Sequence[ProjectReport], now: datetime) -> str:
    """Links to the collections of the page; nothing for a single one."""
    if len(reports) < 2:
        return ""
    links = "".join(
        f'<li><a href="#{_anchor(report)}">{escape(report.status.title)}'
        f"<small>{report.status.done} of {report.status.needed}{_to_do(today(report, now))}</small></a></li>"
        for report in reports
    )
    return f'<nav aria-label="Collections"><ul>{links}</ul></nav>'


def _periods(rows: Sequence[Period]) -> str:
    """Agreement by version of the guidelines, the earliest first."""
    heads = ("collection", "guidelines", "first", "last", "judgements", "agreement", "alpha", "by criterion")
    cells = (
        (
            row.collection,
            row.guidelines,
            _time(row.first),
            _time(row.last),
            str(row.judgements),
            _rate(row.agreement),
            "-" if row.alpha is None else f"{row.alpha:.2f}",
            ", ".join(f"{name} {_rate(rate)}" for name, rate in row.criteria.items()),
        )
        for row in rows
    )
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        "<h2>Agreement before and after a change of guidelines</h2>"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
    )


def _anchor(report: ProjectReport) -> str:
    return f"collection-{report.status.number}"


def _to_do(work: Today) -> str:
    count = (
        len(work.questions) + len(work.disputed) + sum(len(group.items) for group in work.set_aside) + len(work.quiet)
    )
    return f", {count} to look at" if count else ""


def _collection(report: ProjectReport, now: datetime) -> str:
    row, address, work = report.status, project_url(report), today(report, now)
    links = (("tasks in Label Studio", ""), ("label", "?labeling=1"))
    link = " · ".join(f'<a href="{escape(address + part)}">{text}</a>' for text, part in links if address)
    parts = [
        f'<section id="{_anchor(report)}"><h2>{escape(row.title)}</h2>'
        f"<p>{escape(facts(report))}. {'Deleted on the server.' if row.deleted else link}</p>",
        _bar(report),
        _today(work),
        _tiles(report),
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(report)),
        svg_figure(
            progress_chart(
                [time.astimezone() for time in report.times], row.done, row.needed, row.last_sync, row.expected_end
            ),
            "judgements over time",
        ),
    ]
    judged = [person for person in report.crew if person.agreement.share is not None]
    if judged:
        parts.append(svg_figure(answers_chart(judged, report.names), "agreement, reliability and speed by annotator"))
        parts.append(svg_figure(habits_chart(judged, report.names), "habits by annotator"))
    if report.crew:
        parts.append(_people(report))
    if work.days:
        parts.append(_days(report, work))
    return "\n".join([*parts, "</section>\n"])


def _today(work: Today) -> str:
    """The list of today, before all figures."""
    if work.empty:
        return '<div class="today"><h3>Today</h3><p>Nothing to look at.</p></div>'
    parts = ['<div class="today"><h3>Today</h3>']
    if work.questions:
        parts.append(f"<h4>{len(work.questions)} questions of annotators</h4>{_items(work.questions)}")
    if work.disputed:
        parts.append(f"<h4>{len(work.disputed)} disputed tasks</h4>{_items(work.disputed)}")
    if work.set_aside:
        parts.append(f"<h4>{sum(len(group.items) for group in work.set_aside)} annotations do not count</h4>")
        parts += [f"<p>{len(group.items)}: {escape(group.reason)}</p>{_items(group.items)}" for group in work.set_aside]
    if work.quiet:
        parts.append(f"<h4>{len(work.quiet)} quiet annotators</h4>{_items(work.quiet)}")
    return "".join([*parts, "</div>"])


def _items(items: Sequence[Item]) -> str:
    rows = [
        f'<li><a href="{escape(item.url)}">{escape(item.text)}</a></li>'
        if item.url
        else f"<li>{escape(item.text)}</li>"
        for item in items
    ]
    first, rest = "".join(rows[:OPEN_ITEMS]), "".join(rows[OPEN_ITEMS:])
    more = f"<details><summary>{len(rows) - OPEN_ITEMS} more</summary><ul>{rest}</ul></details>" if rest else ""
    return f"<ul>{first}</ul>{more}"


def _days(report: ProjectReport, work: Today) -> str:
    """Judgements by day and annotator, the newest day first."""
    people = list(dict.fromkeys(annotator for day in work.days for annotator in sorted(day.judgements)))
    head = "".join(f"<th class=number>{escape(name_of_annotator(report, annotator))}</th>" for annotator in people)
    rows = "".join(
        f"<tr><td class=day>{day.day}</td><td class=number>{sum(day.judgements.values())}</td>"
        + "".join(f"<td class=number>{day.judgements.get(annotator, '')}</td>" for annotator in people)
        + "</tr>"
        for day in work.days
    )
    table = f"<table><tr><th>day</th><th class=number>all</th>{head}</tr>{rows}</table>"
    return f'<h3>Judgements per day</h3><div class="wide">{table}</div>'


def svg_figure(figure: Figure, title: str) -> str:
    """A figure as inline SVG in the page's text colour."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyph; only its width is estimated
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return f'<figure role="img" aria-label="{escape(title)}">{svg}</figure>'


def _tiles(report: ProjectReport) -> str:
    row = report.status
    end = "done" if row.needed and row.done >= row.needed else _time(row.expected_end) or "no recent activity"
    tiles = [
        (f"{row.done} of {row.needed}", f"judgements, on {row.tasks} tasks"),
        (f"{row.per_hour:.1f}", "judgements per hour, last 24 hours"),
        (end, "expected end"),
        (_rate(report.agreement.overall), f"agreement, {report.agreement.overall.count} double judgements"),
        (_alpha(report), "Krippendorff's alpha"),
        (_time(row.last_sync) or "never", "last sync"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _bar(report: ProjectReport) -> str:
    row = report.status
    text = f"{row.done} of {row.needed}"
    return f'<progress aria-label="judgements" max="{max(row.needed, 1)}" value="{row.done}">{text}</progress>'


def _time(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone():%Y-%m-%d %H:%M}"


def _rate(rate: Rate) -> str:
    if rate.share is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _alpha(report: ProjectReport) -> str:
    value, low, high = report.agreement.alpha, report.agreement.alpha_low, report.agreement.alpha_high
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _notes(report: ProjectReport) -> list[str]:
    row = report.status
    notes = [f"{row.lost} annotations were deleted on the server; the store keeps them"] if row.lost else []
    notes += ["the label config was edited on the server after the project was created"] if row.screen_changed else []
    rated = [f"{name} {_rate(rate)}" for name, rate in report.agreement.criteria.items() if rate.share is not None]
    return notes + ([f"agreement by criterion: {', '.join(rated)}"] if rated else [])


def _people(report: ProjectReport) -> str:
    heads = ("annotator", "judgements", "skips", "agreement", "reliability", "median seconds", "concerns")
    numbers = {"judgements", "skips", "reliability", "median seconds"}
    head = "".join(f"<th{' class=number' if name in numbers else ''}>{name}</th>" for name in heads)
    rows = "".join(_person(person, report.names.get(person.annotator_id, "")) for person in report.crew)
    return f'<h3>Annotators</h3><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _person(person: AnnotatorQuality, name: str) -> str:
    figures = [
        ("" if value is None else f"{value:{form}}")
        for value, form in ((person.reliability, ".2f"), (person.median_lead_time_seconds, ".0f"))
    ]
    concerns = "<br>".join(map(escape, person.concerns)) + (" (judgements excluded)" if person.set_aside else "")
    return (
        f"<tr><td>{escape(name or f'account {person.annotator_id}')}</td><td class=number>{person.judgements}</td>"
        f"<td class=number>{person.skips}</td><td>{_rate(person.agreement)}</td><td class=number>{figures[0]}</td>"
        f"<td class=number>{figures[1]}</td><td class=doubt>{concerns}</td></tr>"
    )
