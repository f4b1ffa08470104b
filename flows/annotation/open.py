"""`rlhf label open`: creates the projects, tasks, accounts and webhooks of a recipe's `labeling` on the server."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from alignment.errors import ArtifactError
from alignment.records import Prompt, Rejected, read_records, stable_id
from flows.annotation.accounts import State, accounts_file, ensure_people
from flows.annotation.collect import known_answers
from flows.annotation.collections import already_judged
from flows.annotation.label_studio import annotation_store
from flows.annotation.planned import earlier_batches
from flows.annotation.select import (
    COLLECTIONS,
    Budget,
    Material,
    informed,
    needed_stages,
    read_material,
    with_facts,
    within_budget,
)
from flows.home import home_directory
from flows.recipe.schema import Recipe
from flows.tracking.runner import find
from labeling.collection import (
    COLLECTION_FILE,
    REJECTED_FILE,
    Batch,
    Collection,
    collection_origin,
    open_planned,
    read_collection,
    sync_collection,
)
from labeling.config import Kind, LabelingConfig
from labeling.reports.effort import Pace, hours
from labeling.screens.render import screens
from labeling.server.client import LabelStudio
from labeling.server.users import invite_link
from labeling.server.webhooks import ensure_webhook, has_webhook
from labeling.tasks.balance import Balance, balance
from labeling.tasks.plan import Planned, plan_tasks, plan_writing
from labeling.tasks.projects import Opening, differences, find_project
from labeling.tasks.tasks import Task
from labeling.tasks.upload import task_ids


@dataclass(frozen=True)
class Planning:
    """The tasks to open, with their material and budget, for a recipe and its seed.

    `earlier` are batches in projects of an earlier version, in which people go on.
    """

    recipe: str
    seed: int
    config: LabelingConfig
    planned: Planned
    material: Material
    budget: Budget
    unread: Sequence[Rejected]
    earlier: Sequence[Batch] = ()

    def opening(self, kind: Kind) -> Opening:
        """All that determines the collection of a kind of task."""
        config, tasks = self.config, self.planned.tasks[kind]
        origin = collection_origin(config, kind, tasks, self.recipe, self.seed)
        screen = screens(config)[kind]
        return Opening(screen=screen, title=config.title, overlap=config.overlaps[kind], origin=origin)

    @property
    def directory(self) -> Path:
        """Where the home keeps what was opened for these collections, named by their keys."""
        kinds = [kind for kind, tasks in self.planned.tasks.items() if tasks]
        return home_directory() / COLLECTIONS / stable_id("opened", *(self.opening(kind).key for kind in kinds))

    @property
    def hours(self) -> dict[Kind, float]:
        """Hours of annotators by kind."""
        counts = {kind: len(tasks) for kind, tasks in self.planned.tasks.items()}
        return hours(counts, self.config.overlaps, self.budget.paces)


@dataclass(frozen=True)
class ProjectState:
    """The project of a collection on the server: its current state, and what opening would change.

    `others` are sentences on other collections of the recipe and kind.
    """

    kind: Kind
    title: str
    number: int | None
    there: int
    new: int
    overlap_from: int | None
    others: Sequence[str]
    webhook: bool

    @property
    def changes(self) -> bool:
        """Whether opening changes anything."""
        return self.number is None or self.new > 0 or self.overlap_from is not None or self.webhook


def planning(recipe: Recipe, keys: Mapping[str, str], command: str) -> Planning:
    """Plan the tasks of a recipe's collection without contacting Label Studio. Raises ArtifactError for missing stages.

    `keys` are those of the recipe's stages, `command` the arguments of `rlhf run` for the error message.
    """
    config = recipe.labeling
    assert config is not None
    outputs = {stage: stage_output(stage, keys[stage], command) for stage in needed_stages(config)}
    shown = config.judged > 0 or config.demonstrations.draft
    responses = outputs.get("responses")
    town = stage_output("town", keys["town"], command) if recipe.town and config.annotators == "people" else None
    material = with_facts(config, read_material(config, responses), town) if shown else Material(sets=[])
    with closing(annotation_store()) as store:
        config, budget = within_budget(config, material, store, responses)
        earlier = earlier_batches(store, config.annotators)
    known, unread = known_answers(config, material.sets, outputs.get("town"))
    planned = plan_tasks(config, material.sets, known, material.pairs)
    if config.demonstrations.prompts:
        prompts = [responses.prompt for responses in material.sets]
        if "prompts" in outputs:
            rows, rejected = read_records(outputs["prompts"] / "prompts.jsonl", Prompt)
            prompts = [informed(config, row, (), town) for row in rows if row.split == "train"]
            unread = [*unread, *rejected]
        writing: dict[Kind, list[Task]] = {"demonstration": plan_writing(config, prompts, material.sets)}
        planned = replace(planned, tasks=planned.tasks | writing)
    return Planning(recipe.name, recipe.seed, config, planned, material, budget, unread, earlier)


def stage_output(stage: str, key: str, command: str) -> Path:
    """The directory of a stage's output. Raises ArtifactError with the command that produces it."""
    artifact = find(stage, key, home_directory())
    if artifact is None:
        raise ArtifactError(f"the stage {stage} of this recipe has not run yet: `rlhf run {command} --stage {stage}`")
    return artifact.path


def projects(owner: LabelStudio, planning: Planning) -> list[ProjectState]:
    """The state of each kind's project on the server; read-only."""
    return [_project(owner, planning, kind) for kind, tasks in planning.planned.tasks.items() if tasks]


def _project(owner: LabelStudio, planning: Planning, kind: Kind) -> ProjectState:
    config, tasks, opening = planning.config, planning.planned.tasks[kind], planning.opening(kind)
    uids, overlap = {task.uid for task in tasks}, config.overlaps[kind]
    continued = {batch.project.id for batch in planning.earlier if batch.holds(tasks, overlap, opening.screen_hash)}
    match = find_project(owner, opening, continued)
    others = [
        f"{raw['title']} is another collection ({differences(raw, opening)}) and stays with its "
        f"{raw['total_annotations_number']} annotations"
        for raw in match.others
    ]
    if match.current is None:
        return ProjectState(kind, match.name, None, 0, len(uids), None, others, config.webhook is not None)
    number, there = int(match.current["id"]), int(match.current["maximum_annotations"])
    existing = {*task_ids(owner, number)}
    return ProjectState(
        kind,
        match.name,
        number,
        len(uids & existing),
        len(uids - existing),
        None if there == overlap else there,
        others,
        config.webhook is not None and not has_webhook(owner, number, config.webhook),
    )


def standing(owner: LabelStudio, planning: Planning) -> list[str]:
    """Sentences on what is judged already and by whom; none before the collections were opened from this home."""
    if not (planning.directory / COLLECTION_FILE).is_file():
        return []
    collection = read_collection(planning.directory)
    with closing(annotation_store()) as store:
        sync_collection(owner, collection, store)
        return already_judged(store, collection)


def open_plan(owner: LabelStudio, planning: Planning, confirmed: Iterable[str] = ()) -> tuple[Collection, list[str]]:
    """Create accounts, then projects with their tasks, then webhooks. Idempotent, also after an interruption.

    `confirmed` are the addresses of people who signed up themselves. Returns the collection, and notes on tasks that
    the server does not take.
    """
    config, out = planning.config, planning.directory
    ensure_people(owner, config.people, {*confirmed})
    opened = open_planned(owner, config, planning.planned, out, planning.recipe, planning.seed, planning.earlier)
    if config.webhook is not None:
        for batch in opened.batches:
            ensure_webhook(owner, batch.project.id, config.webhook)
    refused = opened.rejected[len(planning.planned.rejected) :]
    notes = [f"{len(refused)} tasks are not taken by Label Studio: {out / REJECTED_FILE}"] if refused else []
    return opened, notes


PLAN_COLUMNS = ("collection", "tasks", "there", "new", "judges per task", "hours of work", "time per judgement")


def plan_rows(planning: Planning, projects: Sequence[ProjectState]) -> list[list[str]]:
    """One row (PLAN_COLUMNS) for each project."""
    rows = []
    for project in projects:
        tasks, overlap = len(planning.planned.tasks[project.kind]), planning.config.overlaps[project.kind]
        rows.append(
            [
                project.title + ("" if project.number else " (new)"),
                str(tasks),
                str(project.there),
                str(project.new),
                str(overlap) if project.overlap_from is None else f"{overlap}, not {project.overlap_from} as now",
                f"{planning.hours[project.kind]:.1f}",
                _pace(planning.budget.paces[project.kind]),
            ]
        )
    return rows


def _pace(pace: Pace) -> str:
    return f"{pace.seconds:.0f} s, " + (f"measured on {pace.measured}" if pace.measured else "assumed")


def notes(planning: Planning, projects: Sequence[ProjectState], people: Mapping[str, State]) -> list[str]:
    """Notes on hours, other collections, rejected rows, balance of screen positions, webhooks and accounts."""
    material, planned = planning.material, planning.planned
    rejected = [*material.rejected, *planning.unread, *planned.rejected]
    counts = (
        (len(material.sets), "prompts to choose from, by " + planning.config.choose.by),
        (len(planned.answers), "tasks have known answers"),
        (planned.collapsed, "responses are near-duplicates within their prompt and are not shown"),
        (material.left_out, "responses exceed the limit of nine on a screen"),
        (len(rejected), f"rows were rejected; the first: {rejected[0].reason}" if rejected else ""),
        (sum(project.webhook for project in projects), f"webhooks to {planning.config.webhook} are missing"),
    )
    return [
        f"about {sum(planning.hours.values()):.1f} annotator hours in total",
        *(sentence for project in projects for sentence in project.others),
        *(f"{count} {what}" for count, what in counts if count),
        *(
            _balance(kind, positions)
            for kind, tasks in planned.tasks.items()
            for positions in balance(tasks, material.origins)
        ),
        *(f"account {email}: {state}" for email, state in people.items() if state != "signed up"),
    ]


def _balance(kind: Kind, positions: Balance) -> str:
    """One line on the balance of the responses' screen positions."""
    lengths = ", ".join(f"{length:.0f}" for length in positions.lengths)
    longer = "" if positions.longer_first is None else f"; the longer response is first in {positions.longer_first:.0%}"
    fair = "" if positions.p_value is None else f"; positions of origins: p = {positions.p_value:.2g}"
    warn = " - unbalanced order: try another labeling.seed" if (positions.p_value or 1.0) < 0.01 else ""
    count = f"{positions.tasks} {kind} tasks of {len(positions.lengths)}"
    return f"{count}: mean characters by position {lengths}{longer}{fair}{warn}"


def links(owner: LabelStudio, planning: Planning, projects: Sequence[ProjectState]) -> list[str]:
    """The projects' addresses, and how people log in."""
    return [
        *(f"{project.title}: {owner.url}/projects/{project.number}/data?labeling=1" for project in projects),
        *([f"passwords and tokens: {accounts_file()}"] if planning.config.people else []),
        "anyone with this link can sign up with any address, and counts once labeling.people names it and you confirm "
        f"here whose account it is: {invite_link(owner)}",
    ]
