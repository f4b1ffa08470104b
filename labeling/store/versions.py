"""Versions of projects, tasks and annotations: the store's rows, built from the server's responses."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from alignment.records import Record
from labeling.authors import owner
from labeling.names import uid_of
from labeling.set_aside import UNREAD

UNREAD_HASH = "unread"  # of an annotation that the server could not send
VOLATILE = ("created_ago", "created_username")
PRESENT, ANNOTATION_DELETED, TASK_DELETED, PROJECT_DELETED = "", "annotation", "task", "project"


class SeenProject(Record):
    """A project as last read from the server. `project` is its key; `deleted`: it is no longer on the server."""

    project: str
    number: int
    url: str
    title: str
    overlap: int
    config_hash: str
    config: str
    deleted: bool = False


class Sync(Record):
    """One sync of a project: its time (server's clock), the newest change seen, and the cursor of the next sync."""

    seen_at: datetime
    whole: bool
    newest: datetime
    cursor: datetime
    tasks_read: int


class Changes(Record):
    """Numbers of annotations that were new, changed (edited, skipped, without annotator) or deleted in a sync."""

    added: int = 0
    changed: int = 0
    deleted: int = 0


class Version(Record):
    """One version of an annotation. `annotator` owns it; `raw` also names who saved it, as `updated_by`.

    `deleted` is empty, or names what was deleted: annotation, task or project.
    """

    annotation: int
    task: int
    uid: str
    annotator: int | None
    skipped: bool
    raw: dict[str, Any]
    hash: str
    config_hash: str
    updated_at: datetime
    seen_at: datetime
    deleted: str


def moment(text: str) -> datetime:
    """A timestamp of the server or the store as a datetime in UTC."""
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def stamp(time: datetime) -> str:
    """A time as text that sorts chronologically."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def canonical(value: Any) -> str:
    """Canonical JSON, in ASCII since a response may contain a lone surrogate."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def content_hash(value: Mapping[str, Any]) -> str:
    """A hash of an annotation or of a task's data, without volatile fields (ages, account names)."""
    stable = {name: part for name, part in value.items() if name not in VOLATILE}
    return hashlib.sha256(canonical(stable).encode()).hexdigest()[:16]


def task_values(project: SeenProject, row: Mapping[str, Any], seen_at: str) -> dict[str, Any]:
    """A row of the table `tasks`."""
    return {
        "project": project.project,
        "task": int(row["id"]),
        "uid": uid_of(row),
        "data": canonical(row["data"]),
        "hash": content_hash(row["data"]),
        "updated_at": stamp(moment(row["updated_at"])),
        "seen_at": seen_at,
        "deleted": PRESENT,
    }


def annotation_values(
    project: SeenProject, row: Mapping[str, Any], raw: Mapping[str, Any], seen_at: str, known_annotator: int | None
) -> dict[str, Any]:
    """A row of the table `annotations`. The annotator is kept when the server drops it with a deleted account."""
    annotator = owner(raw)
    return {
        "project": project.project,
        "annotation": int(raw["id"]),
        "task": int(row["id"]),
        "uid": uid_of(row),
        "annotator": annotator if isinstance(annotator, int) else known_annotator,
        "skipped": bool(raw.get("was_cancelled")),
        "raw": canonical(raw),
        "hash": UNREAD_HASH if UNREAD in raw else content_hash(raw),
        "config_hash": project.config_hash,
        "updated_at": stamp(moment(raw["updated_at"])),
        "seen_at": seen_at,
        "deleted": PRESENT,
    }
