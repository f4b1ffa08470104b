"""Who is told of what: channels of a recipe (`notify`), and of all runs of a home (`notify.yaml`).

A channel names a notification block of Prefect, which keeps the address and its secrets. Neither a recipe nor the file
has any, so that they can be stored and shared.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from alignment.artifacts import write_text
from alignment.bounded import read_bounded
from alignment.config.base import Config
from alignment.errors import ConfigError
from alignment.plain_yaml import LONGEST_BYTES, plain_yaml

FILE = "notify.yaml"  # in the home
Event = Literal["people_done", "quota_reached", "deadline_reached", "gate_failed", "run_died", "disk_low"]
EVENTS: tuple[Event, ...] = get_args(Event)
KINDS = ("custom-webhook", "slack-webhook", "ms-teams-webhook", "email")
BLOCK = re.compile(rf"({'|'.join(KINDS)})/[a-z0-9][a-z0-9-]*")


class Channel(Config):
    """A notification block of Prefect, and what it is told of."""

    to: str = Field(
        description="a notification block of Prefect, KIND/NAME, which `rlhf notify add` stores; KIND is one of "
        + ", ".join(KINDS),
    )
    events: tuple[Event, ...] = Field(EVENTS, min_length=1, description="what it is told of")

    @field_validator("to")
    @classmethod
    def _names_a_block(cls, to: str) -> str:
        if BLOCK.fullmatch(to) is None:
            raise ValueError(
                f"it names no notification block: write KIND/NAME, KIND one of {', '.join(KINDS)}, NAME in lower-case "
                "letters, digits and dashes; the address itself is kept by `rlhf notify add KIND/NAME`"
            )
        return to


def home_channels(home: Path) -> tuple[Channel, ...]:
    """The channels of all runs of a home. Raises ConfigError for a file that has something else."""
    path = home / FILE
    if not path.exists():
        return ()
    try:
        values = plain_yaml(read_bounded(path, LONGEST_BYTES).decode("utf-8-sig"))
        return TypeAdapter(tuple[Channel, ...]).validate_python(values or ())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{path}: {where}: {problem['msg']}; write a list of {EXAMPLE}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error


EXAMPLE = "{to: slack-webhook/team, events: [people_done, run_died]}"


def write_home_channels(home: Path, channels: Iterable[Channel]) -> Path:
    """Write the channels of all runs of a home."""
    path = home / FILE
    rows = [channel.model_dump(mode="json") for channel in channels]
    write_text(path, yaml.safe_dump(rows, sort_keys=False, default_flow_style=None))
    return path


def merged(channels: Iterable[Channel]) -> tuple[Channel, ...]:
    """One channel for each block, with the events of all that name it."""
    events: dict[str, dict[Event, None]] = {}
    for channel in channels:
        events.setdefault(channel.to, {}).update(dict.fromkeys(channel.events))
    return tuple(Channel(to=block, events=tuple(names)) for block, names in events.items())
