"""Judgements from projects with other label configs than ours, such as Label Studio's own templates.

A preference is a selected side (Pairwise), an order (Ranker), a choice between the answers, or a rating of each. Sides,
choices and ratings of two answers have strength 1, orders the distance in ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from alignment.records import Message, Prompt, Rejected, Response, first_problem, stable_id
from labeling.config import Kind
from labeling.errors import TaskError
from labeling.judgements.judgement import Judged, PairwiseJudgement, RankingJudgement
from labeling.judgements.layout import NO_BUCKET, Layout
from labeling.judgements.parse import InvalidAnnotation, Parsed, provenance, sort_annotations
from labeling.tasks.characters import NO_UNICODE, is_unicode, unicode_only
from labeling.tasks.tasks import Task

ROLES = {"user": "user", "human": "user", "person": "user", "prompter": "user", "system": "system"}
ROLES |= dict.fromkeys(("assistant", "gpt", "bot", "model", "agent"), "assistant")
SPEAKER_KEYS, TEXT_KEYS = ("role", "author", "from", "speaker"), ("content", "text", "value", "message")


def read_template(
    rows: Sequence[Any], layout: Layout, source: str, overlap: int
) -> tuple[dict[str, Task], Parsed, list[Rejected]]:
    """(Tasks by uid, their annotations parsed, rows that are no tasks). The same task in two rows is one task."""
    tasks: dict[str, Task] = {}
    annotations = []
    rejected = []
    for number, row in enumerate(rows, start=1):
        try:
            task = _task(row, layout)
        except ValidationError as error:
            rejected.append(Rejected(file=source, line=number, reason=first_problem(error), row=unicode_only(row)))
        except TaskError as error:
            rejected.append(Rejected(file=source, line=number, reason=str(error), row=unicode_only(row)))
        else:
            tasks[task.uid] = task
            annotations += [(task, raw, row) for raw in row["annotations"]]

    def read(raw: Mapping[str, Any], task: Task, _: Mapping[str, Any]) -> Judged:
        return _judgement(raw, task, layout)

    return tasks, sort_annotations(annotations, read, overlap, source), rejected


def _task(row: Any, layout: Layout) -> Task:
    """The task in a row of an export. Raises TaskError, or ValidationError for texts that are none."""
    if not is_task(row):
        raise TaskError("not a task with `data` and `annotations`; export the project as JSON, not JSON-MIN or CSV")
    data = row["data"]
    if not is_unicode(data):
        raise TaskError(NO_UNICODE)
    messages = _messages(data.get(layout.prompt), layout.prompt)
    prompt = Prompt(id=stable_id("p", *(f"{m.role}:{m.content}" for m in messages)), messages=messages)
    if layout.items:
        items = data.get(layout.items)
        if not isinstance(items, list) or not all(isinstance(item, Mapping) and "id" in item for item in items):
            raise TaskError(f"{layout.items} is not a list of objects with `id`")
        answers = [(str(item["id"]), item.get(layout.text)) for item in items]
    else:
        answers = [(name, data.get(name)) for name in layout.answers]
    texts = [text for _, text in answers]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TaskError("a task needs two answers or more, none of them empty")
    if len(set(texts)) < len(texts) or len({name for name, _ in answers}) < len(answers):
        raise TaskError("two answers have the same text or id")
    responses = {name: Response(id=stable_id("r", prompt.id, text), text=text) for name, text in answers}
    uid = stable_id("task", prompt.id, *(f"{name}\x1e{text}" for name, text in answers))
    kind: Kind = "pairwise" if len(layout.answers) == 2 else "ranking"
    return Task(uid=uid, kind=kind, prompt=prompt, responses=responses)


def is_task(row: object) -> bool:
    """Whether a row of an export is a task with its annotations."""
    if not isinstance(row, Mapping) or not isinstance(row.get("data"), Mapping):
        return False
    annotations = row.get("annotations")
    return isinstance(annotations, list) and all(isinstance(raw, Mapping) for raw in annotations)


def _messages(value: object, field: str) -> tuple[Message, ...]:
    """The prompt: a text, or a conversation as a list of turns."""
    if isinstance(value, str) and value.strip():
        return (Message(role="user", content=value),)
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return tuple(Message.model_validate(_turn(turn, field)) for turn in value)
    raise TaskError(f"{field} has neither a text nor a list of turns")


def _turn(turn: Mapping[str, Any], field: str) -> dict[str, Any]:
    speaker = next((str(turn[key]).lower() for key in SPEAKER_KEYS if key in turn), "")
    text = next((turn[key] for key in TEXT_KEYS if key in turn), None)
    if speaker not in ROLES:
        raise TaskError(f"a turn of {field} has the speaker {speaker!r}; known are {', '.join(ROLES)}")
    return {"role": ROLES[speaker], "content": text}


def _judgement(raw: Mapping[str, Any], task: Task, layout: Layout) -> Judged:
    """The judgement in an annotation. Raises InvalidAnnotation."""
    common, values = provenance(raw, task), _values(raw, layout)
    if layout.type == "rating":
        return _rated(values, task, layout, common)
    if layout.controls[0] not in values:
        raise InvalidAnnotation(f"{layout.controls[0]!r} is missing")
    value = values[layout.controls[0]]
    if layout.type == "ranker":
        return _ranked(value, task, layout, common)
    return PairwiseJudgement(**common, preference=_preference(value, layout))


def _values(raw: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The values of the layout's controls, by name; other controls are not read."""
    result = raw.get("result")
    if not isinstance(result, list) or not result:
        raise InvalidAnnotation("the result is empty")
    values: dict[str, Any] = {}
    for item in result:
        if not isinstance(item, Mapping) or item.get("from_name") not in layout.controls:
            continue
        name, value = str(item["from_name"]), item.get("value")
        if name in values:
            raise InvalidAnnotation(f"duplicate control {name!r}")
        key = "selected" if layout.type == "pairwise" else layout.type
        if item.get("type") != layout.type or not isinstance(value, Mapping) or key not in value:
            raise InvalidAnnotation(f"control {name!r} holds {str(item)[:200]}")
        values[name] = value[key]
    return values


def _preference(value: Any, layout: Layout) -> int:
    """1 for the left answer, -1 for the right one, 0 for a tie."""
    if layout.type == "pairwise" and value in ("left", "right"):
        return 1 if value == "left" else -1
    match value:
        case [str(choice)] if layout.type == "choices" and choice in layout.choices:
            if (side := layout.choices[choice]) is not None:
                return side
            raise InvalidAnnotation(f"{choice!r} prefers no answer")
    raise InvalidAnnotation(f"{layout.controls[0]!r} holds {str(value)[:100]}")


def _ranked(value: Any, task: Task, layout: Layout, common: dict[str, Any]) -> RankingJudgement:
    """The order of a Ranker. Items of one bucket tie; items outside of the buckets are not compared."""
    name = layout.controls[0]
    if not isinstance(value, Mapping) or not all(isinstance(part, list) for part in value.values()):
        raise InvalidAnnotation(f"{name!r} holds {str(value)[:100]}")
    groups = [[str(item) for item in value.get(bucket, ())] for bucket in layout.buckets]
    if not layout.buckets:
        groups = [[str(item)] for item in value.get(name, ())]
    order = [item for group in groups for item in group]
    everything = order if not layout.buckets else [*order, *map(str, value.get(NO_BUCKET, ()))]
    expected = {*layout.buckets, NO_BUCKET} if layout.buckets else {name}
    complete = sorted(everything) == sorted(task.responses) or (
        layout.buckets and set(everything) <= set(task.responses)
    )
    if not set(value) <= expected or len(set(order)) < len(order) or not complete:
        raise InvalidAnnotation(f"{str(value)[:200]} is not an order of the task's {len(task.responses)} answers")
    if len(order) < 2:
        raise InvalidAnnotation("fewer than two answers are in order")
    return RankingJudgement(**common, ranking=tuple(order), ties=_ties(groups))


def _ties(groups: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Positions, counted from 1, that tie with the next one: those inside of a group."""
    ties: list[int] = []
    position = 0
    for group in groups:
        ties += range(position + 1, position + len(group))
        position += len(group)
    return tuple(ties)


def _rated(values: Mapping[str, Any], task: Task, layout: Layout, common: dict[str, Any]) -> Judged:
    """The order by stars; for two answers the one with more stars, or a tie."""
    stars: dict[str, int | float] = {}
    for control, answer in zip(layout.controls, layout.answers, strict=True):
        value = values.get(control)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidAnnotation(f"{answer} has no rating in {control!r}")
        stars[answer] = value
    if task.kind == "pairwise":
        left, right = (stars[answer] for answer in layout.answers)
        return PairwiseJudgement(**common, preference=(left > right) - (left < right))
    grades = sorted(set(stars.values()), reverse=True)
    groups = [[answer for answer in layout.answers if stars[answer] == grade] for grade in grades]
    return RankingJudgement(**common, ranking=tuple(a for group in groups for a in group), ties=_ties(groups))
