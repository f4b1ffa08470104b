"""`rlhf label open`: from the `labeling` part of a recipe to projects, tasks, accounts and webhooks on the server."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from alignment.errors import ArtifactError, ConfigError
from alignment.records import Prompt, Rejected, read_records
from flows.annotation import accounts
from flows.annotation.collect import annotation_store, client, known_answers
from flows.annotation.select import COLLECTIONS, Budget, Material, read_material, within_budget
from flows.home import home_directory
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import Recipe, check_files, load_recipe
from flows.stack.stack import connect
from labeling.collection import open_planned
from labeling.config import Kind, LabelingConfig
from labeling.reports.effort import Pace, hours
from labeling.server.client import LabelStudio
from labeling.server.users import invite_link
from labeling.server.webhooks import ensure_webhook, webhook_is_there
from labeling.tasks.balance import balance
from labeling.tasks.plan import Planned, plan_tasks, plan_writing
from labeling.tasks.projects import full_title, project_versions
from labeling.tasks.tasks import Task
from labeling.tasks.upload import task_ids


@dataclass(frozen=True)
class Planning:
    """What is to be opened, with what it was chosen from and what it takes."""

    config: LabelingConfig
    planned: Planned
    material: Material
    budget: Budget
    unread: Sequence[Rejected]

    @property
    def hours(self) -> dict[Kind, float]:
        """Hours of annotators by kind."""
        counts = {kind: len(tasks) for kind, tasks in self.planned.tasks.items()}
        return hours(counts, self.config.overlaps, self.budget.paces)


@dataclass(frozen=True)
class Line:
    """One kind of task on the server: what is there, and what opening it would change."""

    kind: Kind
    title: str
    number: int | None
    there: int
    new: int
    overlap_from: int | None
    older: Mapping[str, int]
    webhook: bool

    @property
    def changes(self) -> bool:
        """Whether opening changes anything."""
        return self.number is None or self.new > 0 or self.overlap_from is not None or self.webhook


def open_recipe(
    name: str, overrides: Sequence[str], *, only_plan: bool, ask: Callable[[], bool], home: Path | None
) -> None:
    """Show what opening a recipe's collection does and takes and, unless `only_plan`, do it if `ask` says so."""
    recipe = load_recipe(name, overrides)
    check_files(recipe)
    if recipe.labeling is None:
        raise ConfigError(f"the recipe {recipe.name} has no `labeling`, so nothing is to be judged: give it one")
    if not (os.environ.get("LABEL_STUDIO_API_KEY") and (recipe.labeling.url or os.environ.get("LABEL_STUDIO_URL"))):
        os.environ.update(connect(home).environment())
    told = " ".join([name, *(f"--set {shlex.quote(override)}" for override in overrides)])
    found = planning(recipe, told, home)
    with client(found.config) as owner:
        lines = look(owner, found)
        people = accounts.states(owner, found.config.people, home)
        show_plan(found, lines, people)
        if not any(line.changes for line in lines) and not {"new", "token changed"} & {*people.values()}:
            typer.echo("nothing to do: all of it is there already")
        elif only_plan or not ask():
            typer.echo("nothing was changed")
            return
        else:
            carry_out(owner, found, home)
            lines = look(owner, found)
        show_links(owner, found, lines, home)


def planning(recipe: Recipe, told: str, home: Path | None) -> Planning:
    """The tasks of a recipe's collection; nothing is asked of Label Studio. Raises ArtifactError for missing stages."""
    config = recipe.labeling
    assert config is not None
    shown = config.judged > 0 or config.demonstrations.draft
    responses = made(recipe, "responses", told, home) if shown and not config.responses else None
    material = read_material(config, responses) if shown else Material(sets=[])
    with closing(annotation_store(home)) as store:
        config, budget = within_budget(config, material, store, responses, home)
    town = made(recipe, "town", told, home) if config.quality.gold.share and recipe.town else None
    known, unread = known_answers(config, material.sets, town)
    planned = plan_tasks(config, material.sets, known, material.pairs)
    if config.demonstrations.prompts:
        prompts = [one.prompt for one in material.sets]
        if not config.demonstrations.draft:
            rows, bad = read_records(made(recipe, "prompts", told, home) / "prompts.jsonl", Prompt)
            prompts, unread = [row for row in rows if row.split == "train"], [*unread, *bad]
        writing: dict[Kind, list[Task]] = {"demonstration": plan_writing(config, prompts, material.sets)}
        planned = replace(planned, tasks=planned.tasks | writing)
    return Planning(config, planned, material, budget, unread)


def made(recipe: Recipe, stage: str, told: str, home: Path | None) -> Path:
    """Where the output of a stage of the recipe lies. Raises ArtifactError with the command that makes it."""
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.update(connect(home).environment())
    from flows.tracking.runner import find

    found = find(stage, keys(steps(recipe))[stage], home_directory(home))
    if found is None:
        raise ArtifactError(f"the stage {stage} of this recipe was not run yet: `rlhf run {told} --stage {stage}`")
    return found.path


def look(owner: LabelStudio, found: Planning) -> list[Line]:
    """What the server has of each kind; nothing is changed."""
    return [_line(owner, found, kind) for kind, tasks in found.planned.tasks.items() if tasks]


def _line(owner: LabelStudio, found: Planning, kind: Kind) -> Line:
    config, uids = found.config, {task.uid for task in found.planned.tasks[kind]}
    seen = project_versions(owner, kind, config.title)
    older = {str(raw["title"]): int(raw["total_annotations_number"]) for raw in seen.older}
    title = full_title(kind, config.title)
    if seen.current is None:
        return Line(kind, title, None, 0, len(uids), None, older, config.webhook is not None)
    number, overlap = int(seen.current["id"]), int(seen.current["maximum_annotations"])
    there = {*task_ids(owner, number)}
    return Line(
        kind,
        title,
        number,
        len(uids & there),
        len(uids - there),
        None if overlap == config.overlaps[kind] else overlap,
        older,
        config.webhook is not None and not webhook_is_there(owner, number, config.webhook),
    )


def carry_out(owner: LabelStudio, found: Planning, home: Path | None) -> None:
    """Accounts first, then projects with their tasks, then webhooks. Killed half-way and repeated, it does the rest."""
    accounts.ensure_people(owner, found.config.people, home)
    place = home_directory(home) / COLLECTIONS / found.config.title
    opened = open_planned(owner, found.config, found.planned, place)
    if found.config.webhook is not None:
        for batch in opened.batches:
            ensure_webhook(owner, batch.project.id, found.config.webhook)


def show_plan(found: Planning, lines: Sequence[Line], people: Mapping[str, accounts.State]) -> None:
    """Projects, tasks, hours and accounts, and what is worth knowing before people begin."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("project", "tasks", "there", "new", "judges each", "hours of work", "a judgement takes")
    for line in lines:
        tasks, overlap = len(found.planned.tasks[line.kind]), found.config.overlaps[line.kind]
        each = str(overlap) if line.overlap_from is None else f"{overlap}, not {line.overlap_from} as now"
        pace = _pace(found.budget.paces[line.kind])
        table.add_row(
            escape(line.title) + ("" if line.number else " (new)"),
            str(tasks),
            str(line.there),
            str(line.new),
            each,
            f"{found.hours[line.kind]:.1f}",
            pace,
        )
    Console().print(table)
    for text in [f"about {sum(found.hours.values()):.1f} hours of annotators in all", *notes(found, lines, people)]:
        typer.echo(text)


def _pace(pace: Pace) -> str:
    return f"{pace.seconds:.0f} s, " + (f"measured on {pace.measured}" if pace.measured else "assumed")


def notes(found: Planning, lines: Sequence[Line], people: Mapping[str, accounts.State]) -> list[str]:
    """What is worth knowing: older screens, what was left out, how responses lie, accounts, webhooks."""
    told = [
        f"the screen of {line.title.rpartition(' [')[0]} was changed: {title} stays with its {count} annotations"
        for line in lines
        for title, count in line.older.items()
    ]
    material, planned = found.material, found.planned
    put_aside = [*material.rejected, *found.unread, *planned.rejected]
    for count, what in (
        (len(material.sets), "prompts to choose from, by " + found.config.choose.by),
        (len(planned.answers), "tasks have known answers"),
        (planned.collapsed, "responses nearly repeat another one of their prompt and are not shown"),
        (material.left_out, "responses have no room on a screen, which takes nine"),
        (len(put_aside), f"rows make no task; the first: {put_aside[0].reason}" if put_aside else ""),
        (sum(line.webhook for line in lines), f"webhooks to {found.config.webhook} are missing"),
    ):
        told += [f"{count} {what}"] if count else []
    for kind, tasks in planned.tasks.items():
        told += [_balanced(kind, one) for one in balance(tasks, material.origins)]
    return told + [f"account {email}: {state}" for email, state in people.items()]


def _balanced(kind: Kind, one: Any) -> str:
    """A line about the places of responses on the screen."""
    lengths = ", ".join(f"{length:.0f}" for length in one.lengths)
    longer = "" if one.longer_first is None else f"; the longer one comes first in {one.longer_first:.0%}"
    fair = "" if one.p_value is None else f"; places of origins: p = {one.p_value:.2g}"
    warn = " - not what a fair order gives: try another labeling.seed" if (one.p_value or 1.0) < 0.01 else ""
    return f"{one.tasks} {kind} tasks of {len(one.lengths)}: mean characters by place {lengths}{longer}{fair}{warn}"


def show_links(owner: LabelStudio, found: Planning, lines: Sequence[Line], home: Path | None) -> None:
    """Where people work, and how they get in."""
    for line in lines:
        typer.echo(f"{line.kind}: {owner.url}/projects/{line.number}/data?labeling=1")
    if found.config.people:
        typer.echo(f"passwords and tokens: {accounts.book_path(home)}")
    typer.echo(f"whoever has this link can sign up: {invite_link(owner)}")
