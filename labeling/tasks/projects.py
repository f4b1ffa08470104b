"""Projects: one per kind of task, title and screen. A changed screen opens a new project.

Label Studio lets a screen be edited under annotations that were made with the old one. So the project's title carries a
hash of its screen, and a project is only used again if that is still the same.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.records import Record
from labeling.config import Kind
from labeling.errors import UnexpectedAnswer
from labeling.locks import exclusive_lock
from labeling.names import HASH_CHARACTERS, SIGNATURE, config_hash, title_of
from labeling.screens.render import instruction, screen
from labeling.server.client import LabelStudio, expect

TITLE_CHARACTERS = 50


class Project(Record):
    """A project on the server."""

    id: int
    kind: Kind
    title: str
    overlap: int
    screen_hash: str
    url: str

    @property
    def labeling_url(self) -> str:
        """Where an annotator starts to work."""
        return f"{self.url}/projects/{self.id}/data?labeling=1"


def screen_hash(kind: Kind) -> str:
    """A short hash of all that an annotator is shown around a task."""
    return config_hash(screen(kind))


def full_title(kind: Kind, title: str) -> str:
    """The title on the server: it names the kind of task and the screen."""
    return f"{title} {kind}"[: TITLE_CHARACTERS - HASH_CHARACTERS - 3] + f" [{screen_hash(kind)}]"


class Versions(BaseModel):
    """The projects of one kind and title: the one with the screen of today, and those with screens of before."""

    model_config = ConfigDict(frozen=True)

    current: dict[str, Any] | None
    older: tuple[dict[str, Any], ...]


def project_versions(client: LabelStudio, kind: Kind, title: str) -> Versions:
    """What the server has of a kind and title; nothing is changed."""
    named = [(raw, title_of(str(raw["title"]))) for raw in client.projects()]
    ours = [raw for raw, parts in named if parts is not None and (parts.name, parts.kind) == (title, kind)]
    now = full_title(kind, title)
    current = next((raw for raw in ours if raw["title"] == now), None)
    return Versions(current=current, older=tuple(raw for raw in ours if raw["title"] != now))


def open_project(client: LabelStudio, kind: Kind, title: str, overlap: int) -> Project:
    """The project of this kind, title and screen: found, or made. Its overlap is set to `overlap`.

    Repeatable; two callers on one machine get the same project.
    """
    digest, whole = screen_hash(kind), full_title(kind, title)
    with exclusive_lock(f"{client.url} projects"):
        found = [p for p in client.projects() if p["title"] == whole]
        if len(found) > 1:
            raise UnexpectedAnswer(f"{len(found)} projects are called {whole!r}: delete all but one")
        project_id = int(found[0]["id"]) if found else _create(client, kind, whole, overlap)
        if found and found[0]["maximum_annotations"] != overlap:
            client.call(client.sdk.projects.update, project_id, maximum_annotations=overlap)
    return Project(id=project_id, kind=kind, title=whole, overlap=overlap, screen_hash=digest, url=client.url)


def _create(client: LabelStudio, kind: Kind, title: str, overlap: int) -> int:
    project = client.call(
        client.sdk.projects.create,
        title=title,
        description=f"{SIGNATURE}; screen {screen_hash(kind)}. Do not edit the labeling interface.",
        label_config=screen(kind),
        expert_instruction=instruction(),
        show_instruction=True,
        maximum_annotations=overlap,
        sampling="Uniform sampling",
        skip_queue="REQUEUE_FOR_OTHERS",
        show_collab_predictions=False,
        enable_empty_annotation=True,
    )
    return expect(project.id, int, "the id of a new project")
