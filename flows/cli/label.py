"""The commands `rlhf label …`: open collections, synchronise the store of annotations, show progress, exchange data."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.errors import ConfigError, RLHFError
from flows.cli import exchange
from flows.cli.common import AsJson, Overrides, print_table, queries
from flows.console import echo
from flows.recipe.schema import check_files, load_recipe
from flows.stack.environment import load_clients, use_stack, waiting
from flows.stack.services import Name
from labeling.config import LabelingConfig
from labeling.errors import LabelingError, ServerFault

if TYPE_CHECKING:
    from labeling.server.client import LabelStudio

app = typer.Typer(help="Collections of judgements: open, follow, import and export.", no_args_is_help=True)
Projects = Annotated[
    list[int] | None, typer.Option("--project", metavar="NUMBER", help="Only this project; can be repeated.")
]
app.command("import")(exchange.import_judgements)
app.command("export")(exchange.export)
app.command("demonstrations")(exchange.export_written)
app.command("show")(exchange.show)
NEXT_STEP = (
    "no project is known: `rlhf label open RECIPE` opens one and prints its address; `rlhf recipes` lists the recipes"
)


@app.command("open")
def open_collection(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print tasks and hours; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Open without asking.")] = False,
) -> None:
    """Create the projects, tasks, accounts and webhooks of the recipe's `labeling`.

    Shows the estimated hours and asks first. Idempotent.
    """
    config = load_recipe(recipe, overrides or [])
    check_files(config)
    if config.labeling is None:
        raise ConfigError(f"the recipe {config.name} has no section `labeling`, so there is nothing to label: add one")
    with waiting("loading the stages"):
        from flows.annotation.select import needed_stages

    servers: tuple[Name, ...] = ("label-studio", *(("mlflow",) if needed_stages(config.labeling) else ()))
    command = " ".join([recipe, *(f"--set {shlex.quote(override)}" for override in overrides or [])])
    with queries(*servers, label_studio=config.labeling.url):
        from flows.annotation import open as opening
        from flows.annotation.accounts import states
        from flows.annotation.label_studio import client
        from flows.pipeline.dag import keys, steps

        planning = opening.planning(config, keys(steps(config)), command)
        with client(planning.config) as owner:
            projects, people = opening.projects(owner, planning), states(owner, planning.config.people)
    print_table(opening.PLAN_COLUMNS, opening.plan_rows(planning, projects))
    for note in opening.notes(planning, projects, people):
        echo(note)
    with client(planning.config) as owner:
        if not any(project.changes for project in projects) and not {"new", "token changed", "signed up"} & {
            *people.values()
        }:
            echo("nothing to do: everything exists already")
        elif plan or not (yes or typer.confirm("open it?")):
            echo("nothing was changed")
            return
        else:
            with waiting(f"opening the projects at {owner.url}"):
                remarks = opening.open_plan(owner, planning)
                projects = opening.projects(owner, planning)
            for note in remarks:
                echo(note)
        for line in opening.links(owner, planning, projects):
            echo(line)


@app.command()
def sync(
    whole: Annotated[bool, typer.Option("--whole", help="Read everything, not only changes.")] = False,
    project: Projects = None,
    as_json: AsJson = False,
) -> None:
    """Synchronise the local store of annotations with Label Studio: new ones, edits, skips and deletions."""
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.label_studio import annotation_store
        from labeling.store import sync as syncing

    store = annotation_store()
    with _label_studio() as client:
        report = syncing.sync(client, store, project or (), whole=whole)
    synced = report.synced
    if as_json:
        rows = [result.model_dump(mode="json", exclude={"project": {"config"}}) for result in synced]
        echo(json.dumps(rows, indent=2), lines=True)
    elif synced:
        print_table(
            ["project", "read", "tasks read", "new", "changed", "deleted"],
            [
                (
                    result.project.title,
                    "the project was deleted" if result.project.deleted else result.why or "changes",
                    *map(
                        str, (result.tasks_read, result.changes.added, result.changes.changed, result.changes.deleted)
                    ),
                )
                for result in synced
            ],
        )
        for line in progress.remarks(report):
            echo(line)
        echo(f"the store is {store.path}")
    elif not report.problems:
        echo(NEXT_STEP)
    for problem in report.problems:
        echo(problem, err=True)
    if report.unread:
        raise typer.Exit(1)


@app.command()
def listen(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; labeling.webhook of the recipe names it.")] = 8099,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between syncs without a webhook.")] = 60.0,
    project: Projects = None,
) -> None:
    """Keep the local store synchronised until Ctrl-C: on each webhook of Label Studio, and periodically."""
    use_stack("label-studio")
    load_clients("label-studio")
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.label_studio import annotation_store, client
        from labeling.server.receiver import sync_when_woken, webhook_receiver
        from labeling.server.webhooks import secret_of
        from labeling.store import sync as syncing

    store, wake = annotation_store(), Event()
    with (
        client(LabelingConfig()) as label_studio,
        webhook_receiver(port, wake, secret_of(label_studio)) as url,
    ):
        echo(f"listening for Label Studio's webhooks at {url} (labeling.webhook); Ctrl-C stops")

        def once() -> None:
            try:
                report = syncing.sync(label_studio, store, project or ())
            except LabelingError as error:
                echo(f"sync failed, retrying: {error}", err=True)
                return
            for result in report.synced:
                new, other, gone = result.changes.added, result.changes.changed, result.changes.deleted
                if new or other or gone:
                    echo(f"{result.project.title}: {new} new, {other} changed, {gone} deleted")
            for line in (*progress.remarks(report), *report.problems):
                echo(line, err=True)

        sync_when_woken(once, wake, every)


@app.command()
def status(
    project: Projects = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots.")] = None,
) -> None:
    """Show progress, pace, expected end, agreement and each annotator, by project."""
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.accounts import accounts_by_server
        from flows.annotation.label_studio import annotation_store
        from flows.annotation.planned import plans
        from labeling.reports.page import status_page
        from labeling.reports.report import reports
        from labeling.store import sync as syncing

    store = annotation_store()
    try:
        with _label_studio() as client:
            synced = syncing.sync(client, store, project or ())
        for line in (*progress.remarks(synced), *synced.problems):
            echo(line, err=True)
    except ServerFault as error:
        echo(f"as of the last sync, because Label Studio fails: {error}", err=True)
    except (RLHFError, LabelingError) as error:
        from flows.disk import MachineFault
        from flows.failures import explained

        if isinstance(fault := explained(error), MachineFault):
            raise fault from error
        echo(f"as of the last sync, because Label Studio is not available: {error}", err=True)
    project_reports = reports(store, project or (), known=accounts_by_server(), plans=plans())
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(status_page(project_reports), encoding="utf-8")
        echo(f"the page is {html}", err=as_json)
    if as_json:
        echo(json.dumps([report.status.model_dump(mode="json") for report in project_reports], indent=2), lines=True)
        return
    for columns, rows in progress.tables(project_reports) if project_reports else []:
        print_table(columns, rows)
    for hint in progress.hints(project_reports) if project_reports else [NEXT_STEP]:
        echo(hint)


@contextmanager
def _label_studio() -> Iterator["LabelStudio"]:
    """The client of this command's Label Studio."""
    with queries("label-studio"):
        from flows.annotation.label_studio import client

        with client(LabelingConfig()) as label_studio:
            yield label_studio
