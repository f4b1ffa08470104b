"""Strict parsing of Label Studio annotations into typed judgements.

Label Studio does not validate annotations: any account can post any JSON. An annotation that our labeling interface
cannot have produced is quarantined with a reason (`Rejected`), never repaired.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alignment.records import Record, Rejected
from labeling.authors import author, owner
from labeling.judgements.controls import Controls, Shape, known_controls, shapes
from labeling.judgements.judgement import (
    Judged,
    Judgement,
    PairwiseJudgement,
    Question,
    RankingJudgement,
    WrittenAnswer,
)
from labeling.screens.render import MOST_ANSWERS
from labeling.set_aside import SET_ASIDE, annotation_refusal, stand_in
from labeling.tasks.characters import NO_UNICODE, is_unicode, shown, unicode_only
from labeling.tasks.tasks import Task, judged_parts

PREFERENCES = {"a_3": 3, "a_2": 2, "a_1": 1, "tie": 0, "b_1": -1, "b_2": -2, "b_3": -3}
CANNOT_JUDGE = "cannot_judge"
LONGEST_SECONDS = 366 * 86_400.0


class Parsed(Record):
    """The annotations of a project, parsed. `skips` counts skips by annotator; `questions` are to the team lead."""

    judgements: list[Judged]
    quarantined: list[Rejected]
    skips: dict[str, int]
    questions: tuple[Question, ...] = ()


class InvalidAnnotation(Exception):
    """An annotation that our labeling interface cannot have produced."""


def parse(
    exported: Sequence[Mapping[str, Any]],
    tasks: Iterable[Task],
    overlap: int,
    source: str,
    controls: Controls | None = None,
) -> Parsed:
    """Sort exported annotations into judgements, skips and quarantined rows.

    `exported` has the shape of an export and of `Store.current`; rows of tasks not in `tasks` are ignored. An
    annotator's newest annotation of a task counts; with more than `overlap` annotators, the earliest ones count.
    `source` names the project in quarantined rows. `controls` are those of the project's label config, by default
    those of the package's English screens.
    """
    by_uid = {task.uid: task for task in tasks}
    rows = [(by_uid.get(str(row["data"].get("uid"))), row) for row in exported]
    annotations = [(task, raw, row) for task, row in rows if task is not None for raw in row["annotations"]]

    def read(raw: Mapping[str, Any], task: Task, row: Mapping[str, Any]) -> Judged:
        if judged_parts(shown(row["data"])) != judged_parts(task.data):
            raise InvalidAnnotation("the task's data on the server differ from what was uploaded")
        return parse_annotation(raw, task, controls)

    parsed = sort_annotations(annotations, read, overlap, source)
    questions = (question(raw, task) for task, raw, _ in annotations if SET_ASIDE not in raw)
    return parsed.model_copy(update={"questions": tuple(row for row in questions if row is not None)})


def question(raw: Mapping[str, Any], task: Task) -> Question | None:
    """What an annotation asks the team lead; it may also be a skip, or one that no judgement can be read from."""
    result = raw.get("result")
    for item in result if isinstance(result, list) else ():
        if isinstance(item, Mapping) and item.get("from_name") == "question" and item.get("type") == "textarea":
            match item.get("value"):
                case {"text": [str(text)] | str(text)} if text.strip() and is_unicode(text):
                    return Question(
                        annotation_id=str(raw.get("id")),
                        annotator_id=str(author(raw)),
                        task_uid=task.uid,
                        asked_at=str(raw.get("updated_at") or raw.get("created_at")),
                        text=text.strip(),
                        skipped=bool(raw.get("was_cancelled")),
                    )
    return None


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


def parse_annotation(raw: Mapping[str, Any], task: Task, controls: Controls | None = None) -> Judged:
    """One annotation as a judgement. Raises InvalidAnnotation if our labeling interface cannot have produced it."""
    controls = controls or known_controls()
    result = raw.get("result")
    if not isinstance(result, list) or not result:
        raise InvalidAnnotation("the result is empty")
    # LabelInterface.validate_annotation accepts missing and duplicate controls, and rejects a clicked answer.
    values = _controls(result, shapes(task.kind, controls))
    question_text = _one_text(values, "question").strip()
    common = provenance(raw, task) | {"guidelines": controls.guidelines, "question": question_text}
    return PARSERS[task.kind](values, task, common, controls)


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


def _controls(result: Sequence[Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
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


def _stars(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """The stars of the controls `names` that were rated; one whose stars were taken back holds none."""
    stars = {name: values[name] for name in names if values.get(name) not in (None, 0) or values.get(name) is False}
    for name, value in stars.items():
        if type(value) is not int or not 1 <= value <= 5:
            raise InvalidAnnotation(f"{name!r} holds {value!r}")
    return stars


def _ranking(values: dict[str, Any], task: Task, common: dict[str, Any], controls: Controls) -> RankingJudgement:
    confirm = _one_choice(values, "confirm", ("ranked", "unrankable", CANNOT_JUDGE))
    marks = _marks(values, task, controls)
    ties = _some_choices(values, "ties", [str(position) for position in range(1, MOST_ANSWERS)])
    if confirm != "ranked":
        return RankingJudgement(**common, **marks, ranking=(), cannot_judge=confirm == CANNOT_JUDGE)
    order = values.get("ranking")
    if not isinstance(order, Mapping) or set(order) != {"ranking"} or not isinstance(order["ranking"], list):
        raise InvalidAnnotation(f"'ranking' holds {str(order)[:100]}")
    ids = order["ranking"]
    if not all(isinstance(i, str) for i in ids) or sorted(ids) != sorted(task.responses):
        raise InvalidAnnotation(
            f"the ranking {str(ids)[:200]} is not an order of the task's {len(task.responses)} responses"
        )
    neighbours = tuple(int(tie) for tie in ties if int(tie) < len(ids))  # keys reach ties that the task does not have
    return RankingJudgement(**common, **marks, ranking=tuple(ids), ties=neighbours)


def _marks(values: Mapping[str, Any], task: Task, controls: Controls) -> dict[str, Any]:
    """The stars and flags of single answers of a ranking, by opaque id; their controls count in the order shown."""
    ratings, flags = {}, {}
    for number, opaque in enumerate(task.shown):
        stars = _stars(values, [f"{criterion}_{number}" for criterion in controls.criteria])
        if stars:
            ratings[opaque] = {name.rpartition("_")[0]: value for name, value in stars.items()}
        if chosen := _some_choices(values, f"flags_{number}", controls.flags):
            flags[opaque] = chosen
    beyond = [name for name in values if name.rpartition("_")[2].isdecimal() and int(name[-1]) >= len(task.shown)]
    if beyond:
        raise InvalidAnnotation(f"{beyond[0]!r} is about an answer that the task does not have")
    return {"ratings": ratings, "flags": flags}


def _pairwise(values: dict[str, Any], task: Task, common: dict[str, Any], controls: Controls) -> PairwiseJudgement:
    choice = _one_choice(values, "preference", (*PREFERENCES, CANNOT_JUDGE))
    preference = PREFERENCES.get(choice, 0)
    ratings = _stars(values, [f"{side}_{criterion}" for side in "ab" for criterion in controls.criteria])
    side = values.get("pairwise")
    if side not in (None, "left", "right"):
        raise InvalidAnnotation(f"'pairwise' holds {side!r}")
    if (side, preference > 0) in (("left", False), ("right", True)) and preference != 0:
        raise InvalidAnnotation(
            f"the {side} answer was clicked, but the preference is for the other ({preference:+d}), which screens of "
            "earlier versions allowed: the annotator opens the task, clicks the better answer and presses Update"
        )
    flags = {name: _some_choices(values, name, controls.flags) for name in ("a_flags", "b_flags") if name in values}
    return PairwiseJudgement(
        **common,
        preference=preference,
        cannot_judge=choice == CANNOT_JUDGE,
        ratings=ratings,
        flags=flags,
        rationale=_one_text(values, "rationale"),
    )


def _demonstration(values: dict[str, Any], _: Task, common: dict[str, Any], __: Controls) -> WrittenAnswer:
    answer = _one_text(values, "answer")
    if not answer.strip():
        raise InvalidAnnotation("'answer' is missing or empty")
    quality = ""
    if "prompt_quality" in values:
        quality = _one_choice(values, "prompt_quality", ("good", "ambiguous", "unsafe"))
    return WrittenAnswer(**common, answer=answer, prompt_quality=quality)


PARSERS: dict[str, Callable[[dict[str, Any], Task, dict[str, Any], Controls], Judged]] = {
    "ranking": _ranking,
    "pairwise": _pairwise,
    "demonstration": _demonstration,
}
