"""Identifiers that mark our projects and tasks on a server: collection keys, label config hashes, task uids."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

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
COLLECTION = re.compile(r"\((?P<key>collection_[0-9a-f]{12})\)")


def collection_of(raw: Mapping[str, Any]) -> str:
    """The key of the collection that a project on the server belongs to, from its description; "" without one."""
    match = COLLECTION.search(str(raw.get("description") or ""))
    return "" if match is None else match["key"]


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
