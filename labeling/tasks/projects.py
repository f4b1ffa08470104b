"""Projects: one per kind of task, title and label config. A changed label config opens a new project.

Label Studio allows a label config to be edited after annotations were made with it. So the project's title contains a
hash of its label config, and a project is reused only if the hash still matches.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.records import Record
from labeling.config import Kind
from labeling.errors import UnexpectedAnswer
from labeling.locks import exclusive_lock
from labeling.names import HASH_CHARACTERS, SETTINGS, SIGNATURE, config_hash, title_of
from labeling.screens.render import instruction, screen, screen_with_cuts
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


def label_config(kind: Kind, *, cut_off: bool = False) -> str:
    """The label config of a kind of task; `cut_off`: of tasks of which some have an answer that was cut off."""
    return screen_with_cuts(kind) if cut_off else screen(kind)


def screen_hash(kind: Kind, *, cut_off: bool = False) -> str:
    """A short hash of the label config of a kind of task."""
    return config_hash(label_config(kind, cut_off=cut_off))


def full_title(kind: Kind, title: str, *, cut_off: bool = False) -> str:
    """The title on the server, with the kind of task and the hash of the label config."""
    return f"{title} {kind}"[: TITLE_CHARACTERS - HASH_CHARACTERS - 3] + f" [{screen_hash(kind, cut_off=cut_off)}]"


class Versions(BaseModel):
    """The projects of one kind and title: the one with the current label config, and those with older ones."""

    model_config = ConfigDict(frozen=True)

    current: dict[str, Any] | None
    older: tuple[dict[str, Any], ...]


def project_versions(client: LabelStudio, kind: Kind, title: str, *, cut_off: bool = False) -> Versions:
    """The server's projects of a kind and title; read-only."""
    titled = [(raw, title_of(str(raw["title"]))) for raw in client.projects()]
    ours = [raw for raw, parts in titled if parts is not None and (parts.name, parts.kind) == (title, kind)]
    current_title = full_title(kind, title, cut_off=cut_off)
    current = next((raw for raw in ours if raw["title"] == current_title), None)
    return Versions(current=current, older=tuple(raw for raw in ours if raw["title"] != current_title))


def open_project(client: LabelStudio, kind: Kind, title: str, overlap: int, *, cut_off: bool = False) -> Project:
    """Get or create the project of this kind, title and label config, and set its overlap.

    `cut_off`: some of its answers were cut off. Only then the label config can say so, so that projects without such
    answers stay the ones that they are.

    Idempotent; concurrent callers on one machine get the same project.
    """
    digest, titled = screen_hash(kind, cut_off=cut_off), full_title(kind, title, cut_off=cut_off)
    with exclusive_lock(f"{client.url} projects"):
        existing = [project for project in client.projects() if project["title"] == titled]
        if len(existing) > 1:
            raise UnexpectedAnswer(f"{len(existing)} projects have the title {titled!r}: delete all but one")
        project_id = int(existing[0]["id"]) if existing else _create(client, kind, titled, overlap, cut_off)
        if existing and existing[0]["maximum_annotations"] != overlap:
            client.call(client.sdk.projects.update, project_id, maximum_annotations=overlap)
    return Project(id=project_id, kind=kind, title=titled, overlap=overlap, screen_hash=digest, url=client.url)


def _create(client: LabelStudio, kind: Kind, title: str, overlap: int, cut_off: bool) -> int:
    project_id = client.call(
        lambda **options: client.sdk.projects.create(**options).id,
        title=title,
        description=f"{SIGNATURE}; screen {screen_hash(kind, cut_off=cut_off)}. Do not edit the labeling interface.",
        label_config=label_config(kind, cut_off=cut_off),
        expert_instruction=instruction(),
        maximum_annotations=overlap,
        **SETTINGS,
    )
    return expect(project_id, int, "the id of a new project")
