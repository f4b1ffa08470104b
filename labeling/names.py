"""Identifiers that mark our projects and tasks on a server: titles, label config hashes, task uids."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, get_args

from alignment.records import Record
from labeling.config import Kind

SIGNATURE = "Made by rlhf-flows"
HASH_CHARACTERS = 8
SETTINGS: dict[str, object] = {  # of a project, besides its title, label config and number of annotators per task
    "show_instruction": True,
    "sampling": "Uniform sampling",
    "skip_queue": "REQUEUE_FOR_OTHERS",
    "show_collab_predictions": False,
    "enable_empty_annotation": True,
    "show_skip_button": True,
}
TITLE = re.compile(rf"(?P<name>.*) (?P<kind>{'|'.join(get_args(Kind))}) \[(?P<screen_hash>[0-9a-f]{{8}})\]")


class Title(Record):
    """The parts of a project title; `screen_hash` is the hash of the label config that the project was created with."""

    name: str
    kind: Kind
    screen_hash: str


def title_of(title: str) -> Title | None:
    """The parts of a project's title; None if it does not have our format."""
    match = TITLE.fullmatch(title)
    return None if match is None else Title.model_validate(match.groupdict())


def config_hash(config: str) -> str:
    """A short hash of a label config, without surrounding whitespace, which the server strips."""
    return hashlib.sha256(config.strip().encode()).hexdigest()[:HASH_CHARACTERS]


def uid_of(row: Mapping[str, Any]) -> str:
    """The uid of a task of ours, "" for any other task."""
    uid = row["data"].get("uid") if isinstance(row["data"], Mapping) else None
    return uid if isinstance(uid, str) and uid.isascii() else ""


def altered_settings(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a project on the server that are not those it was created with."""
    return tuple(
        f"{name} is {raw[name]!r}, not {value!r}" for name, value in SETTINGS.items() if raw.get(name, value) != value
    )
