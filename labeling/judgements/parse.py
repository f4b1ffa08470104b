"""Strict parsing of Label Studio annotations into typed judgements.

Label Studio does not validate annotations: any account can post any JSON. An annotation that our labeling interface
cannot have produced is quarantined with a reason (`Rejected`), never repaired.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alignment.criteria import CRITERION_NAMES
from alignment.records import Record, Rejected
from labeling.authors import author, owner
from labeling.judgements.judgement import Judged, Judgement, PairwiseJudgement, RankingJudgement, WrittenAnswer
from labeling.set_aside import SET_ASIDE, annotation_refusal, stand_in
from labeling.tasks.characters import NO_UNICODE, is_unicode, shown, unicode_only
from labeling.tasks.tasks import Task, completed

PREFERENCES = {"a_3": 3, "a_2": 2, "a_1": 1, "tie": 0, "b_1": -1, "b_2": -2, "b_3": -3}
LONGEST_SECONDS = 366 * 86_400.0
FLAGS = ("refuses_wrongly", "made_up_fact", "unsafe")
RATINGS = tuple(f"{side}_{criterion}" for side in "ab" for criterion in CRITERION_NAMES)


class Parsed(Record):
    """The annotations of a project, parsed. `skips` counts skips by annotator."""

    judgements: list[Judged]
    quarantined: list[Rejected]
    skips: dict[str, int]


class InvalidAnnotation(Exception):
    """An annotation that our labeling interface cannot have produced."""


def parse(exported: Sequence[Mapping[str, Any]], tasks: Iterable[Task], overlap: int, source: str) -> Parsed:
    """Sort exported annotations into judgements, skips and quarantined rows.

    `exported` has the shape of an export and of `Store.current`; rows of tasks not in `tasks` are ignored. An
    annotator's newest annotation of a task counts; with more than `overlap` annotators, the earliest ones count.
    `source` names the project in quarantined rows.
    """
    by_uid = {task.uid: task for task in tasks}
    rows = [(by_uid.get(str(row["data"].get("uid"))), row) for row in exported]
    annotations = [(task, raw, row) for task, row in rows if task is not None for raw in row["annotations"]]

    def read(raw: Mapping[str, Any], task: Task, row: Mapping[str, Any]) -> Judged:
        if shown(completed(row["data"])) != task.data:
            raise InvalidAnnotation("the task's data on the server differ from what was uploaded")
        return parse_annotation(raw, task)

    return sort_annotations(annotations, read, overlap, source)


def sort_annotations(
    annotations: Iterable[tuple[Task, Mapping[str, Any], Mapping[str, Any]]],
    read: Callable[[Mapping[str, Any], Task, Mapping[str, Any]], Judged],
    overlap: int,
    source: str,
) -> Parsed:
    """Sort (task, annotation, row of the export) into judgements, skips and quarantined rows.

    `read` returns the judgement of an annotation and raises InvalidAnnotation.
    """
    skips: dict[str, int] = defaultdict(int)
    invalid: list[tuple[Mapping[str, Any], str]] = []
    originals: dict[str, Mapping[str, Any]] = {}
    by_task: dict[str, list[Judged]] = defaultdict(list)
    for task, raw, row in annotations:
        if reason := raw.get(SET_ASIDE) or annotation_refusal(raw):
            invalid.append((raw, reason))
            continue
        if raw.get("was_cancelled"):
            skips[str(author(raw))] += 1
            continue
        originals[str(raw.get("id"))] = raw
        try:
            if not is_unicode(raw):
                raise InvalidAnnotation(NO_UNICODE)
            by_task[task.uid].append(read(raw, task, row))
        except InvalidAnnotation as problem:
            invalid.append((raw, str(problem)))
    judgements: list[Judged] = []
    for of_task in by_task.values():
        kept, surplus = _within_overlap(of_task, overlap)
        judgements += kept
        invalid += [(originals[judgement.annotation_id], reason) for judgement, reason in surplus]
    return Parsed(
        judgements=judgements, quarantined=[_rejected_row(source, *pair) for pair in invalid], skips=dict(skips)
    )


def _rejected_row(source: str, raw: Mapping[str, Any], reason: str) -> Rejected:
    """The quarantined row; its line is the annotation's id."""
    number = raw.get("id")
    line = number if isinstance(number, int) else 0
    row = stand_in(raw, reason) if annotation_refusal(raw) else unicode_only(raw)
    return Rejected(file=f"{source}/task/{raw.get('task')}", line=line, reason=reason, row=row)


def _within_overlap(judgements: Sequence[Judged], overlap: int) -> tuple[list[Judged], list[tuple[Judged, str]]]:
    """(Judgements that count, by annotator id so that speed does not matter; the others, each with the reason)."""
    newest: dict[str, Judged] = {}
    surplus: list[tuple[Judged, str]] = []
    for judgement in sorted(judgements, key=_age):
        if judgement.annotator_id in newest:
            surplus.append((newest[judgement.annotator_id], "superseded by a later judgement of the same annotator"))
        newest[judgement.annotator_id] = judgement
    in_order = sorted(newest.values(), key=_age)
    surplus += [(late, f"exceeds the overlap of {overlap}") for late in in_order[overlap:]]
    return sorted(in_order[:overlap], key=_by_annotator), surplus


def _age(judgement: Judgement) -> tuple[str, int]:
    return judgement.created_at, int(judgement.annotation_id)


def _by_annotator(judgement: Judgement) -> tuple[int, str]:
    """Ids as numbers, after e-mail addresses."""
    identity = judgement.annotator_id
    return (int(identity), "") if identity.isdecimal() else (-1, identity)


def parse_annotation(raw: Mapping[str, Any], task: Task) -> Judged:
    """One annotation as a judgement. Raises InvalidAnnotation if our labeling interface cannot have produced it."""
    common = provenance(raw, task)
    result = raw.get("result")
    if not isinstance(result, list) or not result:
        raise InvalidAnnotation("the result is empty")
    # LabelInterface.validate_annotation accepts missing and duplicate controls, and rejects a clicked answer.
    return PARSERS[task.kind](_controls(result, SHAPES[task.kind]), task, common)


def provenance(raw: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The fields that all judgements have: annotation, author, task and times. Raises InvalidAnnotation.

    An annotation that another person changed is that person's judgement, of the time of the change; how long it took
    is unknown.
    """
    first, last, number = owner(raw), author(raw), raw.get("id")
    if isinstance(number, bool) or not isinstance(number, int) or (first is None and last is None):
        raise InvalidAnnotation("no annotator or no annotation id")
    if last is None:
        raise InvalidAnnotation(
            f"account {raw.get('updated_by')} changed or only starred the annotation of account {first}: which of them "
            "judged is unknown; the one whose judgement it is opens it and presses Update"
        )
    common = {"annotation_id": str(number), "annotator_id": str(last), "task_uid": task.uid}
    if first is not None and last != first:
        return common | {"created_at": str(raw.get("updated_at")), "first_annotator_id": str(first)}
    seconds = raw.get("lead_time")
    lead_time = float(seconds) if isinstance(seconds, int | float) and 0.0 <= seconds <= LONGEST_SECONDS else 0.0
    return common | {"created_at": str(raw.get("created_at")), "lead_time": lead_time}


def _controls(result: Sequence[Any], shapes: Mapping[str, tuple[str, str, str]]) -> dict[str, Any]:
    """The value of each control, by name. `shapes`: name → (to_name, type, key of the value)."""
    values: dict[str, Any] = {}
    for item in result:
        if not isinstance(item, Mapping) or not isinstance(item.get("from_name"), str):
            raise InvalidAnnotation(f"an item without a control name: {str(item)[:100]}")
        name = item["from_name"]
        if name not in shapes:
            raise InvalidAnnotation(f"unknown control {name!r}")
        if name in values:
            raise InvalidAnnotation(f"duplicate control {name!r}")
        to_name, kind, key = shapes[name]
        value = item.get("value")
        target_matches = str(item.get("to_name")).split(",")[0] == to_name
        if item.get("type") != kind or not target_matches or not isinstance(value, Mapping) or key not in value:
            raise InvalidAnnotation(f"control {name!r} holds {str(item)[:200]}")
        values[name] = value[key]
    return values


def _one_choice(values: Mapping[str, Any], name: str, allowed: Iterable[str]) -> str:
    """The single choice of a required control."""
    if name not in values:
        raise InvalidAnnotation(f"{name!r} is missing")
    match values[name]:
        case [str(choice)] if choice in allowed:
            return choice
    raise InvalidAnnotation(f"{name!r} holds {values[name]!r}")


def _some_choices(values: Mapping[str, Any], name: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """The choices of an optional multiple-choice control, in the order of `allowed`."""
    chosen = values.get(name, [])
    known = isinstance(chosen, list) and all(isinstance(choice, str) and choice in allowed for choice in chosen)
    if not known or len(set(chosen)) < len(chosen):
        raise InvalidAnnotation(f"{name!r} holds {str(chosen)[:100]}")
    return tuple(choice for choice in allowed if choice in chosen)


def _one_text(values: Mapping[str, Any], name: str) -> str:
    """The text of a control, "" if it was left empty."""
    match values.get(name):
        case None | []:
            return ""
        case str(text) | [str(text)]:
            return text
    raise InvalidAnnotation(f"{name!r} holds {str(values[name])[:100]}")


def _ranking(values: dict[str, Any], task: Task, common: dict[str, Any]) -> RankingJudgement:
    confirm = _one_choice(values, "confirm", ("ranked", "unrankable", "cannot_judge"))
    ties = _some_choices(values, "ties", [str(position) for position in range(1, len(task.responses))])
    if confirm != "ranked":
        return RankingJudgement(**common, ranking=(), cannot_judge=confirm == "cannot_judge")
    order = values.get("ranking")
    if not isinstance(order, Mapping) or set(order) != {"ranking"} or not isinstance(order["ranking"], list):
        raise InvalidAnnotation(f"'ranking' holds {str(order)[:100]}")
    ids = order["ranking"]
    if not all(isinstance(i, str) for i in ids) or sorted(ids) != sorted(task.responses):
        raise InvalidAnnotation(
            f"the ranking {str(ids)[:200]} is not an order of the task's {len(task.responses)} responses"
        )
    return RankingJudgement(**common, ranking=tuple(ids), ties=tuple(map(int, ties)))


def _pairwise(values: dict[str, Any], task: Task, common: dict[str, Any]) -> PairwiseJudgement:
    preference = PREFERENCES[_one_choice(values, "preference", PREFERENCES)]
    ratings = {name: values[name] for name in RATINGS if name in values}
    for name, stars in ratings.items():
        if type(stars) is not int or not 1 <= stars <= 5:
            raise InvalidAnnotation(f"{name!r} holds {stars!r}")
    side = values.get("pairwise")
    if side not in (None, "left", "right"):
        raise InvalidAnnotation(f"'pairwise' holds {side!r}")
    if (side, preference > 0) in (("left", False), ("right", True)) and preference != 0:
        raise InvalidAnnotation(f"the {side} answer was clicked, but the preference is for the other ({preference:+d})")
    flags = {name: _some_choices(values, name, FLAGS) for name in ("a_flags", "b_flags") if name in values}
    return PairwiseJudgement(
        **common, preference=preference, ratings=ratings, flags=flags, rationale=_one_text(values, "rationale")
    )


def _demonstration(values: dict[str, Any], task: Task, common: dict[str, Any]) -> WrittenAnswer:
    answer = _one_text(values, "answer")
    if not answer.strip():
        raise InvalidAnnotation("'answer' is missing or empty")
    quality = ""
    if "prompt_quality" in values:
        quality = _one_choice(values, "prompt_quality", ("good", "ambiguous", "unsafe"))
    return WrittenAnswer(**common, answer=answer, prompt_quality=quality)


SHAPES: dict[str, dict[str, tuple[str, str, str]]] = {
    "ranking": {
        "ranking": ("responses", "ranker", "ranker"),
        "confirm": ("prompt", "choices", "choices"),
        "ties": ("prompt", "choices", "choices"),
    },
    "pairwise": {
        "pairwise": ("pairwise", "pairwise", "selected"),
        "preference": ("prompt", "choices", "choices"),
        "rationale": ("prompt", "textarea", "text"),
    }
    | {name: (f"response_{name[0]}", "rating", "rating") for name in RATINGS}
    | {f"{side}_flags": (f"response_{side}", "choices", "choices") for side in "ab"},
    "demonstration": {
        "answer": ("prompt", "textarea", "text"),
        "prompt_quality": ("prompt", "choices", "choices"),
    },
}
PARSERS: dict[str, Callable[[dict[str, Any], Task, dict[str, Any]], Judged]] = {
    "ranking": _ranking,
    "pairwise": _pairwise,
    "demonstration": _demonstration,
}
