"""Names by which we recognise what is ours on a server: titles of projects, hashes of screens, uids of tasks."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, get_args

from alignment.records import Record
from labeling.config import Kind

SIGNATURE = "Made by rlhf-flows"
HASH_CHARACTERS = 8
TITLE = re.compile(rf"(?P<name>.*) (?P<kind>{'|'.join(get_args(Kind))}) \[(?P<screen_hash>[0-9a-f]{{8}})\]")


class Title(Record):
    """The parts of a title that we gave a project; `screen_hash` is of the screen that it was made with."""

    name: str
    kind: Kind
    screen_hash: str


def title_of(title: str) -> Title | None:
    """The parts of a project's title; None for one that is not ours."""
    match = TITLE.fullmatch(title)
    return None if match is None else Title.model_validate(match.groupdict())


def config_hash(config: str) -> str:
    """A short hash of a label config; the server strips it, so spaces at the ends do not count."""
    return hashlib.sha256(config.strip().encode()).hexdigest()[:HASH_CHARACTERS]


def uid_of(row: Mapping[str, Any]) -> str:
    """The uid that we gave a task, "" when it is not one of ours."""
    uid = row["data"].get("uid") if isinstance(row["data"], Mapping) else None
    return uid if isinstance(uid, str) and uid.isascii() else ""
