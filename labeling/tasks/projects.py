"""Projects: each collection of judgements, of one kind of task, has a project of its own on the server.

A collection is what is asked (the tasks, their screen with its guidelines, the number of judgements a task) and who is
asked. Its key is a hash of that and stands in the description of its project, so that the same recipe with the same
options finds it again, after a kill or from another machine, and any other option opens another collection. Its name is
the project's title: the recipe, the kind of task, and what tells it from others of that recipe.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.records import Record, stable_id
from labeling.config import DEFAULT_TITLE, Annotators, Kind
from labeling.errors import UnexpectedAnswer
from labeling.locks import exclusive_lock
from labeling.names import SETTINGS, SIGNATURE, collection_of
from labeling.screens.render import Screen
from labeling.screens.render import screen as default_screen
from labeling.server.client import LabelStudio, expect

TITLE_CHARACTERS = 50
FINAL = "final"
GROUPS: Mapping[Annotators, str] = {"people": "people", "simulated": "simulated annotators"}
FACTS = re.compile(
    r"recipe (?P<recipe>.*), seed (?P<seed>-?\d+), judged by (?P<annotators>[a-z ]+), (?P<overlap>\d+) per task, "
    r"guidelines (?P<guidelines>[0-9a-f]+)\."
)
WORDS = {
    "recipe": "recipe {}",
    "seed": "seed {}",
    "annotators": "judged by {}",
    "overlap": "{} per task",
    "guidelines": "another screen or other guidelines",
}


class Origin(Record):
    """What a collection was opened for: the recipe and its seed, who judges, and `content`, a digest of what is judged.

    `final`: it is the second collection, of disputed tasks, for a senior annotator.
    """

    recipe: str = ""
    seed: int = 0
    annotators: Annotators = "people"
    content: str = ""
    final: bool = False


class Project(Record):
    """A project on the server. Those of versions that had one project for all collections of a title have no `key`."""

    id: int
    kind: Kind
    title: str
    overlap: int
    screen_hash: str
    url: str
    key: str = ""
    origin: Origin | None = None

    @property
    def labeling_url(self) -> str:
        """Where an annotator starts to work."""
        return f"{self.url}/projects/{self.id}/data?labeling=1"


class Opening(BaseModel):
    """All that determines a collection. `title` is the recipe's option."""

    model_config = ConfigDict(frozen=True)

    screen: Screen
    title: str
    overlap: int
    origin: Origin = Origin()

    @property
    def kind(self) -> Kind:
        """The kind of its tasks."""
        return self.screen.kind

    @property
    def screen_hash(self) -> str:
        """The version of the screen and its guidelines."""
        return self.screen.hash

    @property
    def key(self) -> str:
        """The key of the collection. Recipe and seed only name it: equal tasks for equal annotators are shared."""
        origin = self.origin
        parts = (self.title, self.kind, str(self.overlap), self.screen_hash, origin.annotators, origin.content)
        return stable_id("collection", *parts, FINAL if origin.final else "")

    @property
    def stem(self) -> str:
        """The beginning of the name, which all collections of the recipe and kind share."""
        chosen = self.origin.recipe if self.title == DEFAULT_TITLE and self.origin.recipe else self.title
        kind = f" {FINAL if self.origin.final else ''} {self.kind}".replace("  ", " ")
        return chosen[: TITLE_CHARACTERS - len(kind) - len(" 999 (seed 999999, crew)")].strip() + kind

    def name(self, number: int) -> str:
        """The name of the `number`-th collection with this stem, seed and annotators."""
        seed, annotators = self.origin.seed, self.origin.annotators
        notes = [*([f"seed {seed}"] if seed else []), *(["crew"] if annotators == "simulated" else [])]
        return self.stem + (f" {number}" if number > 1 else "") + (f" ({', '.join(notes)})" if notes else "")

    @property
    def facts(self) -> str:
        """What is stored in the project's description, for people and for `differences`."""
        origin = self.origin
        return (
            f"recipe {origin.recipe or self.title}, seed {origin.seed}, judged by {GROUPS[origin.annotators]}, "
            f"{self.overlap} per task, guidelines {self.screen_hash}."
        )

    @property
    def description(self) -> str:
        """The description of the project on the server."""
        return f"{SIGNATURE}: {self.facts} Do not edit the labeling interface. ({self.key})"


class ProjectMatch(BaseModel):
    """A collection's name, its project on the server, None if there is none, and the other projects with its stem."""

    model_config = ConfigDict(frozen=True)

    name: str
    current: dict[str, Any] | None
    others: tuple[dict[str, Any], ...]


def find_project(client: LabelStudio, opening: Opening, continued: Collection[int] = ()) -> ProjectMatch:
    """The project of a collection; read-only.

    `continued` are projects without a key whose tasks are those of the collection: it goes on in the first that exists.
    """
    listed = list(client.projects())
    current = _current(listed, opening, continued)
    others = (raw for raw in listed if raw is not current and _same_stem(str(raw["title"]), opening))
    name = _free_name(opening, {str(raw["title"]) for raw in listed}) if current is None else str(current["title"])
    return ProjectMatch(name=name, current=current, others=tuple(others))


def _same_stem(title: str, opening: Opening) -> bool:
    return title == opening.stem or title.startswith((f"{opening.stem} ", f"{opening.title} {opening.kind} ["))


def differences(raw: Mapping[str, Any], opening: Opening) -> str:
    """What makes a project on the server another collection, in words."""
    theirs, ours = FACTS.search(str(raw.get("description") or "")), FACTS.search(opening.facts)
    if theirs is None or ours is None:
        return "of an earlier version, which kept all collections of a title in one project"
    other = [WORDS[name].format(theirs[name]) for name in WORDS if theirs[name] != ours[name]]
    return ", ".join(other) or "other prompts or responses"


def _current(listed: Sequence[dict[str, Any]], opening: Opening, continued: Collection[int]) -> dict[str, Any] | None:
    """The project with the collection's key, else one that it goes on in."""
    existing = [raw for raw in listed if collection_of(raw) == opening.key]
    if len(existing) > 1:
        numbers = ", ".join(str(raw["id"]) for raw in existing)
        raise UnexpectedAnswer(f"the projects {numbers} are one collection, {opening.name(1)}: delete all but one")
    old = [raw for raw in listed if int(raw["id"]) in continued and not collection_of(raw)]
    return next(iter([*existing, *old]), None)


def open_project(
    client: LabelStudio,
    kind: Kind,
    title: str,
    overlap: int,
    *,
    screen: Screen | None = None,
    origin: Origin | None = None,
    continued: Collection[int] = (),
) -> Project:
    """Get or create the project of a collection; without `screen` it shows the package's English one.

    Idempotent; concurrent callers on one machine get the same project.
    """
    shown = screen or default_screen(kind)
    opening = Opening(screen=shown, title=title, overlap=overlap, origin=origin or Origin())
    with exclusive_lock(f"{client.url} projects"):
        listed = list(client.projects())
        raw = _current(listed, opening, continued)
        if raw is None:
            name = _free_name(opening, {str(project["title"]) for project in listed})
            number = _create(client, opening, name)
        else:
            name, number = str(raw["title"]), int(raw["id"])
            _restore(client, raw, opening)
    return Project(
        id=number,
        kind=kind,
        title=name,
        overlap=overlap,
        screen_hash=opening.screen_hash,
        url=client.url,
        key=opening.key,
        origin=opening.origin,
    )


def _free_name(opening: Opening, taken: Collection[str]) -> str:
    return next(name for number in count(1) if (name := opening.name(number)) not in taken)


def _restore(client: LabelStudio, raw: Mapping[str, Any], opening: Opening) -> None:
    """Give an existing project the collection's key and number of annotators, if it has others."""
    if collection_of(raw) != opening.key:
        client.call(client.sdk.projects.update, int(raw["id"]), description=opening.description)
    if raw["maximum_annotations"] != opening.overlap:
        client.call(client.sdk.projects.update, int(raw["id"]), maximum_annotations=opening.overlap)


def _create(client: LabelStudio, opening: Opening, name: str) -> int:
    project_id = client.call(
        lambda **options: client.sdk.projects.create(**options).id,
        title=name,
        description=opening.description,
        label_config=opening.screen.label_config,
        expert_instruction=opening.screen.instruction,
        maximum_annotations=opening.overlap,
        **SETTINGS,
    )
    return expect(project_id, int, "the id of a new project")
