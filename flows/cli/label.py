"""The commands `rlhf label …`: open collections, synchronise the store of annotations, show progress, exchange data."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
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
from labeling.config import LANGUAGES, LabelingConfig
from labeling.errors import LabelingError, ServerFault
from labeling.screens.guidelines import copy_guidelines

if TYPE_CHECKING:
    from labeling.reports.report import ProjectReport
    from labeling.server.client import LabelStudio

app = typer.Typer(help="Collections of judgements: open, follow, import and export.", no_args_is_help=True)
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]", help="The name of a collection, or words of it; all collections without one."),
]
app.command("import")(exchange.import_judgements)
app.command("export")(exchange.export)
app.command("demonstrations")(exchange.export_written)
NEXT_STEP = (
    "no collection is known: `rlhf label open RECIPE` opens one and prints its address; `rlhf recipes` lists recipes"
)


@app.command("guidelines")
def write_guidelines(
    directory: Annotated[Path, typer.Argument(help="A new directory.")],
    language: Annotated[str, typer.Option(help=f"One of {', '.join(LANGUAGES)}.")] = "en",
) -> None:
    """Write the guidelines of a language into a directory, to be changed and named in `labeling.guidelines`."""
    written = copy_guidelines(language, directory)
    echo(f"{directory} has {', '.join(path.name for path in written)}; name it in the recipe: labeling.guidelines")


@app.command("open")
def open_collection(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print tasks and hours; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Open without asking.")] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="EMAIL", help="An account that signed up by itself is the person's; can be repeated."),
    ] = None,
) -> None:
    """Create the projects, tasks, accounts and webhooks of the recipe's `labeling`.

    Shows the estimated hours and asks first, and asks whose the accounts are that signed up by themselves. Idempotent.
    """
    config = load_recipe(recipe, overrides or [])
    check_files(config)
    if config.labeling is None:
        raise ConfigError(f"the recipe {config.name} has no section `labeling`, so there is nothing to label: add one")
    if strange := sorted({*(accept or [])} - {*config.labeling.people}):
        raise ConfigError(f"--accept {strange[0]}: labeling.people does not name this address")
    with waiting("loading the stages"):
        from flows.annotation.select import needed_stages

    servers: tuple[Name, ...] = ("label-studio", *(("mlflow",) if needed_stages(config.labeling) else ()))
    command = " ".join([recipe, *(f"--set {shlex.quote(override)}" for override in overrides or [])])
    with queries(*servers, label_studio=config.labeling.url):
        from flows.annotation import open as opening
        from flows.annotation.accounts import NOT_CONFIRMED, sign_ups, states
        from flows.annotation.label_studio import client
        from flows.pipeline.dag import keys, steps

        planning = opening.planning(config, keys(steps(config)), command)
        with client(planning.config) as owner:
            projects, people = opening.projects(owner, planning), states(owner, planning.config.people)
            joined = sign_ups(owner, people)
    print_table(opening.PLAN_COLUMNS, opening.plan_rows(planning, projects))
    for note in opening.notes(planning, projects, people):
        echo(note)
    for email, time in joined.items():
        echo(f"account {email}: signed up by itself on {time} UTC; whoever has the invitation link could")
    with client(planning.config) as owner:
        if not any(project.changes for project in projects) and not {"new", "token changed", "signed up"} & {
            *people.values()
        }:
            echo("nothing to do: everything exists already")
        elif plan or not (yes or typer.confirm("open it?")):
            echo("nothing was changed")
            return
        else:
            confirmed = {*(accept or [])} & joined.keys()
            confirmed |= {email for email in joined if email not in confirmed and not yes and _is_theirs(email)}
            with waiting(f"opening the projects at {owner.url}"):
                _, remarks = opening.open_plan(owner, planning, confirmed)
                projects = opening.projects(owner, planning)
            for note in [*remarks, *(NOT_CONFIRMED.format(email) for email in joined if email not in confirmed)]:
                echo(note)
        for line in (*opening.standing(owner, planning), *opening.links(owner, planning, projects)):
            echo(line)


def _is_theirs(email: str) -> bool:
    """Whether the user says that an account belongs to the person whose address it has."""
    return typer.confirm(f"is the account {email} theirs? If you are not sure, ask the person when they signed up")


@app.command()
def sync(
    name: Names = None,
    whole: Annotated[bool, typer.Option("--whole", help="Read everything, not only changes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Synchronise the local store of annotations with Label Studio: new ones, edits, skips and deletions."""
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.collections import find_numbers
        from flows.annotation.label_studio import annotation_store
        from labeling.store import sync as syncing

    store = annotation_store()
    numbers = find_numbers(name or (), store.projects())
    with _label_studio() as client:
        report = syncing.sync(client, store, numbers, whole=whole)
    synced = report.synced
    if as_json:
        rows = [result.model_dump(mode="json", exclude={"project": {"config"}}) for result in synced]
        echo(json.dumps(rows, indent=2), lines=True)
    elif synced:
        print_table(
            ["collection", "read", "tasks read", "new", "changed", "deleted"],
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
    name: Names = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; labeling.webhook of the recipe names it.")] = 8099,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between syncs without a webhook.")] = 60.0,
) -> None:
    """Keep the local store synchronised until Ctrl-C: on each webhook of Label Studio, and periodically."""
    use_stack("label-studio")
    load_clients("label-studio")
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.collections import find_numbers
        from flows.annotation.label_studio import annotation_store, client
        from labeling.server.receiver import sync_when_woken, webhook_receiver
        from labeling.server.webhooks import secret_of
        from labeling.store import sync as syncing

    store, wake = annotation_store(), Event()
    numbers = find_numbers(name or (), store.projects())
    with (
        client(LabelingConfig()) as label_studio,
        webhook_receiver(port, wake, secret_of(label_studio)) as url,
    ):
        echo(f"listening for Label Studio's webhooks at {url} (labeling.webhook); Ctrl-C stops")

        def once() -> None:
            try:
                report = syncing.sync(label_studio, store, numbers)
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
    name: Names = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots.")] = None,
) -> None:
    """Show progress, pace, expected end, agreement, each annotator, and what to look at today, by collection."""
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from labeling.reports.page import status_page

    reports = _reports(name or ())
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(status_page(reports), encoding="utf-8")
        echo(f"the page is {html}", err=as_json)
    if as_json:
        echo(json.dumps([report.status.model_dump(mode="json") for report in reports], indent=2), lines=True)
        return
    for columns, rows in progress.tables(reports) if reports else []:
        print_table(columns, rows)
    for hint in progress.hints(reports) if reports else [NEXT_STEP]:
        echo(hint)


@app.command()
def show(
    name: Annotated[list[str], typer.Argument(help="A comparison's id (cmp_...), or the name of a collection.")],
    as_json: AsJson = False,
) -> None:
    """Show a comparison with annotator, task and guidelines, or a collection with what to look at in it today."""
    if name[0].startswith("cmp_"):
        exchange.show(name[0], as_json)
        return
    with waiting("loading the libraries"):
        from flows.annotation.progress import today_lines
        from labeling.reports.today import today

    reports, now = _reports(name), datetime.now(UTC)
    if as_json:
        views = {report.status.title: today(report, now).model_dump(mode="json") for report in reports}
        echo(json.dumps(views, indent=2, ensure_ascii=False), lines=True)
        return
    for report in reports:
        for line in today_lines(report, now):
            echo(line)


@app.command()
def collections(name: Names = None, as_json: AsJson = False) -> None:
    """List the collections: recipe, kind of task, annotators, progress, disagreements, and who judged."""
    with waiting("loading the libraries"):
        from flows.annotation.collections import COLUMNS, table

    rows = table(_reports(name or ()))
    if as_json:
        echo(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2), lines=True)
    elif rows:
        print_table(COLUMNS, rows)
    else:
        echo(NEXT_STEP)


def _reports(words: Sequence[str]) -> "list[ProjectReport]":
    """The reports on the collections of a name, after a sync if Label Studio answers."""
    with waiting("loading the libraries"):
        from flows.annotation import progress
        from flows.annotation.accounts import accounts_by_server
        from flows.annotation.collections import find_numbers
        from flows.annotation.label_studio import annotation_store
        from flows.annotation.planned import plans
        from labeling.reports.report import reports
        from labeling.store import sync as syncing

    store = annotation_store()
    numbers = find_numbers(words, store.projects())
    try:
        with _label_studio() as client:
            synced = syncing.sync(client, store, numbers)
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
    return reports(store, numbers, known=accounts_by_server(), plans=plans())


@contextmanager
def _label_studio() -> Iterator["LabelStudio"]:
    """The client of this command's Label Studio."""
    with queries("label-studio"):
        from flows.annotation.label_studio import client

        with client(LabelingConfig()) as label_studio:
            yield label_studio
