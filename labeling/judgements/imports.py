"""Import of a project's JSON export from Label Studio as judgements and comparisons.

Such a file is downloaded by hand, or is the only copy left of a server. It contains the tasks as shown, so no other
input is needed; the ids of responses are the opaque ones of the task. Tasks and annotations that our label
configs cannot have produced are quarantined with file, line and reason; projects with other label configs are read by
`labeling.judgements.templates`. The line is the position of the task in the
file, or the id of the annotation.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.bounded import (
    MOST_WHOLE,
    NestingError,
    list_items,
    loads,
    unkept_number,
)
from alignment.encodings import bounded_text
from alignment.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Record,
    Rejected,
    Response,
    first_problem,
    stable_id,
)
from labeling.config import Kind
from labeling.errors import TaskError
from labeling.judgements.comparisons import comparisons, demonstrations
from labeling.judgements.controls import controls_in
from labeling.judgements.judgement import Judged
from labeling.judgements.layout import LayoutOptions, layout_of
from labeling.judgements.parse import Parsed, parse
from labeling.judgements.templates import is_task, read_template
from labeling.tasks.characters import NO_UNICODE, is_unicode, shown, unicode_only
from labeling.tasks.tasks import SPEAKERS, Task, is_cut_off, judged_parts

ROLES = {name: role for role, name in SPEAKERS.items()}
UID = re.compile(r"task_[0-9a-f]{12}")
PAIRWISE_FIELDS = {"a_id", "b_id", "response_a", "response_b"}
NO_LIMIT = 1_000_000  # an export does not contain the overlap


class Imported(Record):
    """The content of an export. `ties` (strength 0) are separate from `comparisons`."""

    judgements: list[Judged]
    comparisons: list[Comparison]
    ties: list[Comparison]
    demonstrations: list[Demonstration]
    quarantined: list[Rejected]
    skips: int
    layout: str = ""


def import_export(path: Path, options: LayoutOptions | None = None) -> Imported:
    """Read a project's JSON export. Raises TaskError for any other file.

    With `options`, or if no task is ours, the project has another label config, whose layout is derived and returned.
    """
    rows, problems = _read(path)
    templates = [row for row in rows if is_task(row)]
    if options is None and (not templates or any(map(_is_ours, templates))):
        return _import_ours(rows, path, problems)
    layout = layout_of(templates, options or LayoutOptions())
    tasks, parsed, rejected = read_template(rows, layout, str(path), NO_LIMIT)
    return _imported(parsed, tasks, _explained(rejected, problems)).model_copy(update={"layout": layout.describe()})


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Whether a task was made by rlhf-flows, to judge by the form of its uid and by its fields or controls."""
    data, uid = row["data"], row["data"].get("uid")
    if not isinstance(uid, str) or not UID.fullmatch(uid):
        return False
    results = [item for raw in row["annotations"] for item in raw.get("result") or ()]
    controls = {item.get("from_name") for item in results if isinstance(item, Mapping)}
    return "before" in data or data.keys() >= PAIRWISE_FIELDS or not controls.isdisjoint(("ranking", "answer"))


def _import_ours(exported: Sequence[Any], path: Path, problems: Mapping[int, str]) -> Imported:
    tasks: dict[str, Task] = {}
    rows: list[Mapping[str, Any]] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(exported, start=1):
        try:
            task = task_of(row)
            if task.uid in tasks:
                raise TaskError("duplicate of an earlier task in this file")
        except ValidationError as error:
            rejected.append(Rejected(file=str(path), line=number, reason=first_problem(error), row=unicode_only(row)))
        except TaskError as error:
            rejected.append(Rejected(file=str(path), line=number, reason=str(error), row=unicode_only(row)))
        else:
            tasks[task.uid] = task
            rows.append(row)
    return _imported(
        parse(rows, tasks.values(), NO_LIMIT, str(path), controls_in(rows)), tasks, _explained(rejected, problems)
    )


def _explained(rejected: Sequence[Rejected], problems: Mapping[int, str]) -> list[Rejected]:
    """The rejected rows, those that could not be read with the reason why."""
    return [row.model_copy(update={"reason": problems.get(row.line, row.reason)}) for row in rejected]


def _imported(parsed: Parsed, tasks: Mapping[str, Task], rejected: Sequence[Rejected]) -> Imported:
    decided, ties = comparisons(parsed.judgements, tasks)
    return Imported(
        judgements=parsed.judgements,
        comparisons=decided,
        ties=ties,
        demonstrations=demonstrations(parsed.judgements, tasks),
        quarantined=[*rejected, *parsed.quarantined],
        skips=sum(parsed.skips.values()),
    )


def _read(path: Path) -> tuple[list[Any], dict[int, str]]:
    """The rows of an export, None in place of those that cannot be read, and the reasons by their number."""
    try:
        text = bounded_text(path, MOST_WHOLE)
        try:
            rows = loads(text)
        except NestingError:
            rows = [_item(item) for item in list_items(text)]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise TaskError(f"{path} is not valid JSON ({error}); export the project as JSON") from error
    if not isinstance(rows, list):
        raise TaskError(f"{path} is not a list of tasks; export the project as JSON, not JSON-MIN or CSV")
    problems: dict[int, str] = {}
    for number, row in enumerate(rows, start=1):
        if isinstance(row, NestingError):
            problems[number] = str(row)
        elif (value := unkept_number(row)) is not None:
            problems[number] = f"it holds a number that cannot be kept: {value.text}"
    return [None if number in problems else row for number, row in enumerate(rows, start=1)], problems


def _item(text: str) -> Any:
    """The value of an item of a list, or the reason why it cannot be read."""
    try:
        return loads(text)
    except NestingError as error:
        return error


def task_of(row: Any) -> Task:
    """The task in a row of an export. Raises TaskError if it is not a task of ours."""
    data = row.get("data") if isinstance(row, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(row.get("annotations"), list):
        raise TaskError("not a task with `data` and `annotations`; export the project as JSON, not JSON-MIN or CSV")
    if not all(isinstance(raw, Mapping) for raw in row["annotations"]):
        raise TaskError("an annotation is not an object")
    if not is_unicode(data):
        raise TaskError(NO_UNICODE)
    kind, responses = _shown(data)
    messages = _messages(data)
    prompt = Prompt(
        id=stable_id("p", *(f"{m.role}:{m.content}" for m in messages)), messages=messages, meta=_meta(data)
    )
    if not isinstance(data.get("uid"), str) or not data["uid"]:
        raise TaskError("the task has no `uid`: it was not created by rlhf-flows")
    draft = data.get("draft", "") if kind == "demonstration" else ""
    task = Task(uid=data["uid"], kind=kind, prompt=prompt, responses=responses, draft=draft)
    if judged_parts(task.data) != judged_parts(shown(data)):
        raise TaskError("the task's data differ from what rlhf-flows uploads")
    return task


def _meta(data: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that were shown, as the only part of a prompt's `meta` that a task has."""
    match data.get("facts"):
        case [str(facts)]:
            return {"facts": facts}
    return {}


def _shown(data: Mapping[str, Any]) -> tuple[Kind, dict[str, Response]]:
    """The kind of a task, and its responses by opaque id in the order shown."""
    kind = kind_of(data)
    if kind == "pairwise":
        sides = [(data.get(f"{side}_id"), data.get(f"response_{side}"), bool(data.get(f"{side}_cut"))) for side in "ab"]
        return kind, _responses(sides)
    if kind == "ranking":
        listed = data["responses"]
        if not isinstance(listed, list) or not all(isinstance(item, Mapping) for item in listed):
            raise TaskError("`responses` is not a list of objects")
        return kind, _responses([(item.get("id"), item.get("body"), is_cut_off(item)) for item in listed])
    return kind, {}


def kind_of(data: Mapping[str, Any]) -> Kind:
    """The kind of a task of ours, from its data."""
    if "response_a" in data:
        return "pairwise"
    return "ranking" if "responses" in data else "demonstration"


def _responses(answers: list[tuple[Any, Any, bool]]) -> dict[str, Response]:
    """The responses from (id, text, whether it was cut off)."""
    ids = {identity for identity, _, _ in answers if isinstance(identity, str)}
    if len(ids) < len(answers) or not 2 <= len(answers) <= 9:
        raise TaskError("a task needs 2 to 9 responses with unique ids")
    return {
        identity: Response(id=identity, text=text, ended=False if cut_off else None)
        for identity, text, cut_off in answers
    }


def _messages(data: Mapping[str, Any]) -> tuple[Message, ...]:
    """The conversation that was shown."""
    before = data.get("before", [])
    if not isinstance(before, list) or not all(isinstance(turn, Mapping) for turn in before):
        raise TaskError("`before` is not a list of turns")
    turns = [{"role": ROLES.get(str(turn.get("who"))), "content": turn.get("text")} for turn in before]
    turns.append({"role": "user", "content": data.get("prompt")})
    return tuple(Message.model_validate(turn) for turn in turns)


def tasks_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
    """Tasks rebuilt from the server's data, by uid, for parsing and comparing annotations.

    Rows that are no tasks of ours are left out. A task's opaque response ids are the same for all annotators, so
    agreement is exact; the models behind the responses are unknown.
    """
    tasks = {}
    for row in rows:
        try:
            task = task_of(row)
        except (TaskError, ValidationError):
            continue  # not a task of ours
        tasks[task.uid] = task
    return tasks
