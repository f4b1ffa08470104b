"""The log of promotions and rollbacks: tags of the registered model, one for each change, which are only ever added.

An entry is written before the alias is set. A process that is killed between the two left an entry that did not come
into effect; the same command then sets the alias without a second entry.
"""

import getpass
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect.context import FlowRunContext
from pydantic import ValidationError

from alignment.errors import ArtifactError
from alignment.records import Record
from flows import locks
from flows.home import home_directory
from flows.releases.versions import CHAMPION, aliased

TAG_CHANGE = "rlhf.change."  # and a number of four digits
TAG_IN_EFFECT = "rlhf.in_effect."  # and an alias: the version that `set_alias` set last
NONE = "none"
Action = Literal["promoted", "rolled back", "set elsewhere"]


class Change(Record):
    """A change of an alias: `before` and `after` are versions, "" for none."""

    time: str
    alias: str
    action: Action
    before: str
    after: str
    who: str
    why: str

    def sentence(self) -> str:
        """The change in words."""
        versions = f"from version {self.before or 'none'} to {self.after or 'none'}"
        return f"{self.time} {self.alias} {self.action} {versions}, by {self.who}: {self.why}"


def changes(name: str) -> list[Change]:
    """All changes of the aliases of a registered model, oldest first. Raises ArtifactError for a damaged entry."""
    try:
        tags = MlflowClient().get_registered_model(name).tags
    except MlflowException as error:
        raise ArtifactError(f"there is no registered model '{name}'; `rlhf releases` lists what there is") from error
    try:
        return [Change(**json.loads(tags[tag])) for tag in sorted(tags) if tag.startswith(TAG_CHANGE)]
    except (ValueError, TypeError, ValidationError) as error:
        raise ArtifactError(f"a tag {TAG_CHANGE}… of {name} was changed by hand and is no change: {error}") from error


def rejected(log: Sequence[Change]) -> dict[str, Change]:
    """The versions that the champion was taken back from and that nobody promoted since, with that change.

    An alias that was moved in MLflow to an earlier champion counts as a rollback.
    """
    rejections: dict[str, Change] = {}
    champions = set[str]()
    for change in log:
        if change.alias != CHAMPION:
            continue
        back = change.action == "rolled back" or (change.action == "set elsewhere" and change.after in champions)
        rejections.pop(change.after, None)
        if back and change.before:
            rejections[change.before] = change
        champions |= {change.after} - {""}
    return rejections


def former_champions(log: Sequence[Change]) -> list[str]:
    """The versions that were champion and were not taken back, the newest last, without the one that stands."""
    numbers = [change.after for change in log if change.alias == CHAMPION]
    kept = [number for number in numbers if number and number != numbers[-1] and number not in rejected(log)]
    return list(dict.fromkeys(reversed(kept)))[::-1]


def standing(name: str) -> tuple[str, list[Change]]:
    """The champion's number ("" for none) and the log, in which a change that was made in MLflow is noted first."""
    with _exclusive(name):
        current = aliased(name, CHAMPION)
        return current, _settled(name, CHAMPION, current)


def set_alias(name: str, alias: str, after: str, *, action: Action, why: str, before: str | None = None) -> bool:
    """Set an alias and log the change; `after` "" removes it.

    With `before`, False and no change if the alias is at another version by now.
    """
    with _exclusive(name):
        current = aliased(name, alias)
        log = _settled(name, alias, current)
        if before is not None and current != before:
            return False
        last = _last(log, alias)
        stopped = last is not None and (last.before, last.after, last.action) == (current, after, action)
        if current != after and not stopped:
            _add(name, len(log), _change(alias, action, current, after, why))
        client = MlflowClient()
        if after:
            client.set_registered_model_alias(name, alias, after)
        elif current:
            client.delete_registered_model_alias(name, alias)
        client.set_registered_model_tag(name, f"{TAG_IN_EFFECT}{alias}", after or NONE)
    return True


def _settled(name: str, alias: str, current: str) -> list[Change]:
    """The log, after noting that an alias was moved by other means than `set_alias`."""
    log = changes(name)
    known = MlflowClient().get_registered_model(name).tags.get(f"{TAG_IN_EFFECT}{alias}", NONE).removeprefix(NONE)
    if known == current:
        return log
    last = _last(log, alias)
    if last is None or (last.before, last.after) != (known, current):  # else it was killed before it noted the effect
        _add(name, len(log), _change(alias, "set elsewhere", known, current, "the alias was moved in MLflow"))
    MlflowClient().set_registered_model_tag(name, f"{TAG_IN_EFFECT}{alias}", current or NONE)
    return changes(name)


def _last(log: Sequence[Change], alias: str) -> Change | None:
    return next((change for change in reversed(log) if change.alias == alias), None)


def _change(alias: str, action: Action, before: str, after: str, why: str) -> Change:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    author = "unknown" if action == "set elsewhere" else who()
    return Change(time=time, alias=alias, action=action, before=before, after=after, who=author, why=why)


def _add(name: str, number: int, change: Change) -> None:
    text = json.dumps(change.model_dump(mode="json"), ensure_ascii=False)
    MlflowClient().set_registered_model_tag(name, f"{TAG_CHANGE}{number + 1:04}", text)


def who() -> str:
    """The account of this process, as the operating system, MLflow and Prefect know it."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        account = f"uid {os.getuid()}"
    names = [f"{account}@{socket.gethostname()}"]
    if login := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        names.append(f"MLflow: {login}")
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        creator = context.flow_run.created_by
        started = f", started by {creator.display_value}" if creator and creator.display_value else ""
        names.append(f"Prefect: {context.flow_run.name}{started}")
    return ", ".join(names)


@contextmanager
def _exclusive(name: str) -> Iterator[None]:
    """Hold the lock of a model's aliases."""
    with locks.open_lock(home_directory(), f"aliases-{name}") as file:
        locks.wait_for(file, lambda _: None)
        yield
