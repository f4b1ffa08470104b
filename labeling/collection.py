"""The public interface of the package: open a collection, measure its progress, simulate it, pull judgements."""

import logging
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from alignment.records import Record, Rejected, stable_id, write_records
from labeling.authors import Account
from labeling.config import Annotators, CrewConfig, Kind, LabelingConfig, QualityOptions
from labeling.errors import ServerFault, UnexpectedAnswer, UnreadableAnswer
from labeling.judgements.controls import controls_of
from labeling.judgements.judgement import Judged, Question
from labeling.judgements.parse import Parsed, parse
from labeling.names import uid_of
from labeling.quality.assess import Assessment, assess
from labeling.quality.screening import Dispute
from labeling.reopen import needed_overlaps, reopen
from labeling.screens.render import Screen, screens
from labeling.server.client import LabelStudio
from labeling.simulation.crew import (
    Annotator,
    Judge,
    annotate_project,
    crew_accounts,
    make_crew,
    utilities,
)
from labeling.simulation.temperature import fitting_temperature
from labeling.store.store import Store
from labeling.store.sync import Synced, sync_project
from labeling.tasks.gold import Answers
from labeling.tasks.plan import Planned
from labeling.tasks.projects import Origin, Project, open_project
from labeling.tasks.tasks import Task
from labeling.tasks.upload import push

log = logging.getLogger(__name__)
PAUSE_SECONDS = 5.0
COLLECTION_FILE = "collection.json"
REJECTED_FILE = "rejected.jsonl"
ADJUDICATION = "adjudication"  # directory of the second collection


class Batch(Record):
    """The tasks of a collection in one project, and their ids on the server by uid."""

    project: Project
    tasks: tuple[Task, ...]
    task_ids: dict[str, int]

    @property
    def needed(self) -> int:
        """Number of judgements required: tasks × overlap."""
        return len(self.tasks) * self.project.overlap

    def holds(self, tasks: Sequence[Task], overlap: int, screen: str) -> bool:
        """Whether these are the batch's tasks, on the same screen and for as many annotators."""
        same = (self.project.overlap, self.project.screen_hash) == (overlap, screen)
        return same and self.task_ids.keys() == {task.uid for task in tasks}


class Collection(Record):
    """All tasks of a collection. `rejected` are response sets that no task could be built from, and tasks that the
    server does not take; `answers` are the known answers of gold tasks, `people` the addresses of invited people."""

    batches: tuple[Batch, ...]
    people: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    answers: Answers = Field(default_factory=dict)

    @property
    def urls(self) -> dict[str, str]:
        """The address at which annotators label, by kind of task."""
        return {batch.project.kind: batch.project.labeling_url for batch in self.batches}

    @property
    def tasks(self) -> dict[str, Task]:
        """All tasks by uid."""
        return {task.uid: task for batch in self.batches for task in batch.tasks}


class Progress(Record):
    """Judgements done and needed; `by_kind` has both for each kind of task.

    `full` are tasks that are full with annotations that do not count: by project, the overlaps that they need.
    """

    done: int
    needed: int
    by_kind: dict[str, tuple[int, int]]
    full: dict[int, dict[int, int]] = Field(default_factory=dict)

    @property
    def share(self) -> float:
        """Done out of needed, 1.0 when nothing is needed."""
        return self.done / self.needed if self.needed else 1.0


class Pulled(Assessment):
    """The assessed judgements of a collection. `all_judgements` includes gold tasks and senior annotators; `questions`
    are to the team lead."""

    quarantined: list[Rejected]
    questions: list[Question] = Field(default_factory=list)
    all_judgements: list[Judged]
    judgements: int
    skips: int


class CrewReport(Record):
    """The work of a simulated crew: annotations submitted in this call, noise temperature, names by annotator id."""

    submitted: int
    temperature: float
    annotators: dict[str, str]


def open_planned(
    client: LabelStudio,
    config: LabelingConfig,
    planned: Planned,
    out: Path,
    recipe: str = "",
    seed: int = 0,
    earlier: Sequence[Batch] = (),
) -> Collection:
    """Store the planned tasks on the server, each kind in a project of its own, and write `out/collection.json` and
    `out/rejected.jsonl`.

    `recipe` and `seed` name the projects. `earlier` are batches of versions without collections: those with the same
    tasks go on in their projects. Idempotent: existing projects and tasks are reused.
    """
    shown = screens(config)
    opened = []
    for kind, tasks in planned.tasks.items():
        if tasks:
            origin = collection_origin(config, kind, tasks, recipe, seed)
            opened.append(_open_batch(client, shown[kind], config.title, config.overlaps[kind], tasks, origin, earlier))
    return _write_collection(opened, planned.rejected, planned.answers, out, config.people)


def collection_origin(config: LabelingConfig, kind: Kind, tasks: Sequence[Task], recipe: str, seed: int) -> Origin:
    """What the collection of one kind of task is opened for.

    Tasks to judge are one collection as a whole. Answers are written as they come, so that more prompts extend the
    collection of a recipe and seed. A simulated crew with other options is another crew.
    """
    annotators: Annotators = "people" if kind == "demonstration" else config.annotators
    if kind == "demonstration":
        content = stable_id("writing", recipe, seed, config.demonstrations.draft)
    else:
        crew = config.crew.model_dump_json(exclude={"threads"}) if annotators == "simulated" else ""
        content = stable_id("tasks", crew, *sorted(task.uid for task in tasks))
    return Origin(recipe=recipe, seed=seed, annotators=annotators, content=content)


def open_adjudication(
    client: LabelStudio,
    config: LabelingConfig,
    collection: Collection,
    disputed: Sequence[Dispute],
    out: Path,
    earlier: Sequence[Batch] = (),
) -> Collection:
    """Open a second project with the disputed tasks, for a senior annotator. Idempotent like `open_planned`.

    It belongs to the first project, whatever its tasks are: disputes may come and go while it is judged.
    """
    tasks = collection.tasks
    kinds: dict[Kind, list[Task]] = {}
    for dispute in disputed:
        kinds.setdefault(dispute.kind, []).append(tasks[dispute.task_uid])
    first = {batch.project.kind: batch.project for batch in collection.batches}
    shown = screens(config)
    opened = []
    for kind, of_kind in kinds.items():
        named = first[kind].origin or Origin()
        origin = Origin(recipe=named.recipe, seed=named.seed, content=first[kind].key, final=True)
        opened.append(_open_batch(client, shown[kind], config.title, 1, of_kind, origin, earlier))
    return _write_collection(opened, (), {}, out)


def _open_batch(
    client: LabelStudio,
    screen: Screen,
    title: str,
    overlap: int,
    tasks: Sequence[Task],
    origin: Origin,
    earlier: Sequence[Batch] = (),
) -> tuple[Batch, tuple[Rejected, ...]]:
    """The batch, and the tasks that the server does not take."""
    continued = {batch.project.id for batch in earlier if batch.holds(tasks, overlap, screen.hash)}
    project = open_project(client, screen.kind, title, overlap, screen=screen, origin=origin, continued=continued)
    pushed = push(client, project, tasks)
    there = tuple(task for task in tasks if task.uid in pushed.ids)
    return Batch(project=project, tasks=there, task_ids=pushed.ids), pushed.rejected


def _write_collection(
    opened: Sequence[tuple[Batch, tuple[Rejected, ...]]],
    rejected: Sequence[Rejected],
    answers: Answers,
    out: Path,
    people: tuple[str, ...] = (),
) -> Collection:
    """The collection of the opened batches; written to `out`, as are the rows that no task was created for."""
    collection = Collection(
        batches=tuple(batch for batch, _ in opened),
        rejected=(*rejected, *(row for _, refused in opened for row in refused)),
        answers=answers,
        people=people,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_records(out / REJECTED_FILE, collection.rejected)
    temporary = out / (COLLECTION_FILE + ".partial")
    temporary.write_text(collection.model_dump_json(), encoding="utf-8")
    temporary.replace(out / COLLECTION_FILE)
    return collection


def read_collection(out: Path) -> Collection:
    """Read the collection that `open_planned` wrote to `out`."""
    return Collection.model_validate_json((out / COLLECTION_FILE).read_text(encoding="utf-8"))


def sync_collection(client: LabelStudio, collection: Collection, store: Store) -> list[Synced]:
    """Bring the store up to date with the collection's projects, in their order.

    A project that the server cannot send counts as of its last sync. Raises UnexpectedAnswer for a project that neither
    the server nor the store has ever seen.
    """
    synced = [_sync_batch(client, batch, store) for batch in collection.batches]
    for batch, result in zip(collection.batches, synced, strict=True):
        if result is None or result.project.title != batch.project.title:
            raise UnexpectedAnswer(
                f"{client.url} has no project {batch.project.id} titled {batch.project.title!r}. If the server was "
                "set up anew, run the same command again to create the project"
            )
    return [result for result in synced if result is not None]


def _sync_batch(client: LabelStudio, batch: Batch, store: Store) -> Synced | None:
    """The synchronised project of a batch, or what the store has of it if the server fails on this project only."""
    try:
        synced = _sync_again(client, store, batch.project.id)
    except (ServerFault, UnreadableAnswer) as error:
        client.whoami()  # raises if the server fails on everything
        known = store.project(batch.project.id, client.url)
        if known is None:
            raise
        log.warning("project %s counts as of its last sync: %s", batch.project.title, error)
        return Synced(project=known)
    if synced is not None and synced.project.overlap != batch.project.overlap:
        overlap, planned = synced.project.overlap, batch.project.overlap
        log.warning(
            "%s asks for %d annotators a task, not %d: %d count", synced.project.title, overlap, planned, planned
        )
    return synced


def _sync_again(client: LabelStudio, store: Store, number: int) -> Synced | None:
    """Sync a project, and once more after a pause if the server fails on it: the fault may have been a passing one."""
    try:
        return sync_project(client, store, number)
    except (ServerFault, UnreadableAnswer):
        client.whoami()
        time.sleep(PAUSE_SECONDS)
        return sync_project(client, store, number)


def progress(
    collection: Collection, store: Store, synced: Sequence[Synced], known: Container[Account] | None = None
) -> Progress:
    """Judgements done and needed. Only valid judgements of the accounts `known` count, at most the overlap of a task.

    `synced` is what `sync_collection` returned. Judgements are counted in the store: the server's own
    counter of a task may miss one of two that are saved at the same time.
    """
    by_kind: dict[str, tuple[int, int]] = {}
    full: dict[int, dict[int, int]] = {}
    for batch, result in zip(collection.batches, synced, strict=True):
        rows = [row for row in store.current(result.project.project, known) if uid_of(row) in batch.task_ids]
        parsed = parse(rows, batch.tasks, batch.project.overlap, "", controls_of(result.project.config))
        full[batch.project.id] = needed_overlaps(rows, parsed.judgements, batch.project.overlap)
        by_kind[batch.project.kind] = (len(parsed.judgements), batch.needed)
    done, needed = (sum(counts[i] for counts in by_kind.values()) for i in (0, 1))
    return Progress(done=done, needed=needed, by_kind=by_kind, full=full)


def reopen_full(client: LabelStudio, full: Mapping[int, Mapping[int, int]]) -> None:
    """Offer the tasks again that are full with annotations that do not count (`Progress.full`)."""
    for project, needed in full.items():
        if count := reopen(client, project, needed):
            log.warning(
                "%d tasks of project %d were full with annotations that do not count: they are offered again, and "
                "`rlhf label status` says why these do not count",
                count,
                project,
            )


def _pull_all(
    client: LabelStudio, collection: Collection, store: Store | None, known: Container[Account] | None
) -> Parsed:
    """The annotations of all projects of a collection, parsed."""
    store = store or Store()
    pulled: list[Parsed] = []
    unreadable: list[Rejected] = []
    for batch, synced in zip(collection.batches, sync_collection(client, collection, store), strict=True):
        rows, source = store.current(synced.project.project, known), f"label-studio/project/{batch.project.id}"
        unreadable += synced.rejected
        pulled.append(parse(rows, batch.tasks, batch.project.overlap, source, controls_of(synced.project.config)))
    skips: Counter[str] = Counter()
    for parsed in pulled:
        skips.update(parsed.skips)
    return Parsed(
        judgements=[judgement for parsed in pulled for judgement in parsed.judgements],
        quarantined=[*unreadable, *(row for parsed in pulled for row in parsed.quarantined)],
        skips=dict(skips),
        questions=tuple(question for parsed in pulled for question in parsed.questions),
    )


def pull_collection(
    client: LabelStudio,
    collection: Collection,
    store: Store | None = None,
    options: QualityOptions | None = None,
    senior: Collection | None = None,
    known: Container[Account] | None = None,
) -> Pulled:
    """All judgements so far, as comparisons with quality figures.

    The store is synchronised first and is the only source. Without a store the server is read in full and nothing is
    kept. Judgements in the collection `senior` replace those of other annotators on the same tasks. With `known`, only
    those of these accounts count.
    """
    all_tasks, answers = collection.tasks, collection.answers
    ordinary = _pull_all(client, collection, store, known)
    final = _pull_all(client, senior, store, known) if senior else Parsed(judgements=[], quarantined=[], skips={})
    quality = options or QualityOptions()
    assessed = assess(ordinary.judgements, all_tasks, ordinary.skips, quality, answers, final.judgements)
    return Pulled(
        **dict(assessed),
        quarantined=ordinary.quarantined + final.quarantined,
        all_judgements=ordinary.judgements + final.judgements,
        questions=[*ordinary.questions, *final.questions],
        judgements=len(ordinary.judgements) + len(final.judgements),
        skips=sum(ordinary.skips.values()),
    )


def crew_temperature(crew: Sequence[Annotator], collection: Collection, judge: Judge, config: CrewConfig) -> float:
    """`config.temperature`, or by default the one at which the crew reaches `config.agreement` on the responses."""
    if config.temperature is not None:
        return config.temperature
    tasks = collection.tasks.values()
    careful = [annotator for annotator in crew if annotator.habit == "careful"]
    crew = careful if len(careful) > 1 else crew  # `agreement` is defined over careful annotators
    scored = [[utilities(annotator, task.data, task.prompt.id, judge) for annotator in crew] for task in tasks]
    return fitting_temperature(crew, scored, config.agreement)


def simulate_collection(owner: LabelStudio, collection: Collection, config: CrewConfig, judge: Judge) -> CrewReport:
    """Have simulated annotators complete the collection through the API, each with an account and a token.

    `judge(prompt id, response text)` returns a score in 0..1 by criterion. `owner` must be allowed to invite users.
    Idempotent: finished judgements are not repeated.
    """
    crew = make_crew(config)
    accounts = crew_accounts(owner, crew)
    temperature = crew_temperature(crew, collection, judge, config)
    submitted = 0
    for batch in collection.batches:
        prompt_ids = {task.uid: task.prompt.id for task in batch.tasks}
        submitted += annotate_project(owner, batch.project, prompt_ids, crew, accounts, judge, temperature, config)
    people = {str(accounts[annotator.email].id): annotator.name for annotator in crew}
    return CrewReport(submitted=submitted, temperature=temperature, annotators=people)
