"""The commands `rlhf label …`: keep what people said, see how it is going, take judgements in and hand them on."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import exchange
from labeling.errors import LabelingError

if TYPE_CHECKING:
    from labeling.reports.status import ProjectStatus
    from labeling.server.client import LabelStudio
    from labeling.store.sync import Synced

app = typer.Typer(help="What people said, how it is going, and judgements in and out.", no_args_is_help=True)
Home = Annotated[
    Path | None, typer.Option("--home", help="Where the stack lives: RLHF_HOME, else ./.rlhf", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Projects = Annotated[
    list[int] | None, typer.Option("--project", metavar="NUMBER", help="Only this project; can be repeated.")
]
app.command("import")(exchange.import_judgements)
app.command("export")(exchange.export)
app.command("demonstrations")(exchange.written_answers)
app.command("show")(exchange.show)
NEXT_STEP = (
    "no project of ours is known: `rlhf label open RECIPE` opens one and prints where people work; "
    "`rlhf recipes` lists the recipes"
)


@app.command("open")
def open_collection(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option of the recipe.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what it does and what it takes; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before tasks are put before people.")] = False,
    home: Home = None,
) -> None:
    """Open projects, tasks, accounts and webhooks as the `labeling` of a recipe says; again, it changes nothing."""
    from flows.annotation.open import open_recipe

    open_recipe(recipe, overrides or [], only_plan=plan, ask=lambda: yes or typer.confirm("open it?"), home=home)


@app.command()
def sync(
    whole: Annotated[bool, typer.Option("--whole", help="Read everything again, not only what changed.")] = False,
    project: Projects = None,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Bring our own store of annotations up to date with Label Studio; edits, skips and deletions are followed."""
    from flows.annotation.collect import annotation_store
    from labeling.store import sync as syncing

    store = annotation_store(home)
    with _label_studio(home) as client:
        done = syncing.sync(client, store, project or (), whole=whole)
    if as_json:
        shown = [one.model_dump(mode="json", exclude={"project": {"config"}}) for one in done]
        typer.echo(json.dumps(shown, indent=2))
    elif done:
        _console().print(_sync_table(done))
        for one in done:
            if one.config_changed:
                typer.echo(f"the screen of project {one.project.title} was edited since the last sync")
        typer.echo(f"the store is {store.path}")
    else:
        typer.echo(NEXT_STEP)


@app.command()
def listen(
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; labeling.webhook of the recipe names it.")] = 8099,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds until it syncs anyway.")] = 60.0,
    project: Projects = None,
    home: Home = None,
) -> None:
    """Keep our own store up to date until Ctrl-C: at each webhook of Label Studio, and every so often without one."""
    from threading import Event

    from flows.annotation.collect import annotation_store
    from labeling.server.receiver import receiving, sync_when_woken
    from labeling.store import sync as syncing

    store, wake = annotation_store(home), Event()
    with _label_studio(home) as client, receiving(port, wake) as url:
        typer.echo(f"Label Studio may call {url} (labeling.webhook); Ctrl-C ends it")

        def once() -> None:
            try:
                done = syncing.sync(client, store, project or ())
            except LabelingError as error:
                typer.echo(f"not synced, it is tried again: {error}", err=True)
                return
            for one in done:
                new, other, gone = one.changes.added, one.changes.changed, one.changes.deleted
                if new or other or gone:
                    typer.echo(f"{one.project.title}: {new} new, {other} changed, {gone} deleted")

        sync_when_woken(once, wake, every)


@app.command()
def status(
    project: Projects = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots.")] = None,
    home: Home = None,
) -> None:
    """Show progress, pace, expected end, agreement and each annotator, by project."""
    from alignment.errors import RLHFError
    from flows.annotation.collect import annotation_store
    from labeling.reports.report import reports
    from labeling.store import sync as syncing

    store = annotation_store(home)
    try:
        with _label_studio(home) as client:
            syncing.sync(client, store, project or ())
    except (RLHFError, LabelingError) as error:
        typer.echo(f"as of the last sync, since Label Studio cannot be asked now: {error}", err=True)
    found = reports(store, project or ())
    rows = [report.status for report in reversed(found)]
    if html is not None:
        from labeling.reports.page import status_page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(status_page(found), encoding="utf-8")
        typer.echo(f"the page is {html}", err=as_json)
    if as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))
    elif rows:
        for view in (_project_table(rows), _annotator_table(rows)):
            _console().print(view)
        for hint in _hints(rows):
            typer.echo(hint)
    else:
        typer.echo(NEXT_STEP)


def _label_studio(home: Path | None) -> "LabelStudio":
    """The server that the environment names, else the local stack's."""
    from flows.annotation.collect import client
    from flows.stack.stack import connect
    from labeling.config import LabelingConfig

    if not (os.environ.get("LABEL_STUDIO_URL") and os.environ.get("LABEL_STUDIO_API_KEY")):
        os.environ.update(connect(home).environment())
    return client(LabelingConfig())


def _sync_table(done: "list[Synced]") -> Any:
    from rich.table import Table

    table = Table("project", "read", "tasks read", "new", "changed", "deleted")
    for one in done:
        how = "[red]the project was deleted[/red]" if one.project.deleted else one.why or "what changed"
        numbers = (one.tasks_read, one.changes.added, one.changes.changed, one.changes.deleted)
        table.add_row(_plain(one.project.title), how, *map(str, numbers))
    return table


def _project_table(rows: "list[ProjectStatus]") -> Any:
    from rich.table import Table

    table = Table("project", "judged", "per hour", "expected end", "agreement", "alpha", "put aside", "last sync")
    for row in rows:
        share = f"{row.done} of {row.needed} ({row.done / row.needed:.0%})" if row.needed else "no tasks"
        table.add_row(
            _plain(row.title) + (" [red](deleted)[/red]" if row.deleted else ""),
            share,
            f"{row.per_hour:.0f}",
            _end(row),
            _agreement(row),
            "-" if row.alpha is None else f"{row.alpha:.2f}",
            str(row.quarantined),
            f"{row.last_sync:%Y-%m-%d %H:%M}" if row.last_sync else "never",
        )
    return table


def _end(row: "ProjectStatus") -> str:
    if row.needed and row.done >= row.needed:
        return "done"
    return f"{row.expected_end:%Y-%m-%d %H:%M}" if row.expected_end else "no recent activity"


def _agreement(row: "ProjectStatus") -> str:
    rate = row.agreement
    if rate.share is None or rate.low is None or rate.high is None:
        return "-"
    return f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _annotator_table(rows: "list[ProjectStatus]") -> Any:
    from rich.table import Table

    table = Table("project", "annotator", "judgements", "skips", "median seconds")
    for row in rows:
        for one in row.annotators:
            who = _plain(one.name) or ("unknown" if one.annotator is None else f"account {one.annotator}")
            seconds = "-" if one.median_seconds is None else f"{one.median_seconds:.0f}"
            table.add_row(_plain(row.title), who, str(one.judgements), str(one.skips), seconds)
    return table


def _hints(rows: "list[ProjectStatus]") -> list[str]:
    """What there is to do, and where."""
    open_ones = [row for row in rows if not row.deleted and row.done < row.needed]
    return [
        *(f"people work on {row.title} at {row.url}/projects/{row.number}/data?labeling=1" for row in open_ones),
        *(f"{row.lost} annotations of {row.title} are gone from the server and kept here" for row in rows if row.lost),
        *(
            f"the screen of {row.title} was edited on the server: put it back, or change it in labeling/screens and "
            "run again, which opens a new project"
            for row in rows
            if row.screen_changed and not row.deleted
        ),
    ]


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console() -> Any:
    from rich.console import Console

    return Console()
