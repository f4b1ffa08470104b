"""Label configs as label-studio-sdk reads them, and its validation of annotations compared with ours."""

import re
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from labeling.judgements.controls import controls_of, shapes
from labeling.judgements.parse import CANNOT_JUDGE, PREFERENCES, InvalidAnnotation, parse_annotation
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen
from labeling.tasks.tasks import Task
from tests.labeling.judgements.test_parse import (
    PAIRWISE,
    RANKED,
    RANKING,
    STRANGE,
    UNRANKABLE,
    WRITING,
    annotation,
    answer,
    preference,
    ranker,
    rating,
    several,
)

CONFIGS = {task.kind: screen(task.kind, ratings=True).label_config for task in (RANKING, PAIRWISE, WRITING)}
SCREENS = {kind: LabelInterface(config) for kind, config in CONFIGS.items()}
FLAGS = [flag.name for flag in shipped("en").flags]
CHOICES = {
    "ranking": {
        "confirm": ["ranked", "unrankable", "cannot_judge"],
        "ties": ["1", "2", "3", "4", "5", "6", "7", "8"],
        "flags_{{idx}}": FLAGS,
    },
    "pairwise": {"preference": [*PREFERENCES, CANNOT_JUDGE], "a_flags": FLAGS, "b_flags": FLAGS},
    "demonstration": {"prompt_quality": ["good", "ambiguous", "unsafe"]},
}
MADE_BY_SCREENS: list[tuple[Task, list[Any]]] = [
    (RANKING, [ranker(list(RANKING.shown)), RANKED]),
    (RANKING, [ranker(list(RANKING.shown[::-1])), UNRANKABLE]),
    (RANKING, [ranker(list(RANKING.shown)), RANKED, several("ties", "prompt", "3", "1")]),
    (PAIRWISE, [preference("tie")]),
    (PAIRWISE, [rating("a_helpful", 5), rating("b_harmless", 1), preference("a_3")]),
    (PAIRWISE, [preference("b_1"), several("a_flags", "response_a", "sexual", "refuses_wrongly")]),
    (WRITING, [answer("Mara Lind."), several("prompt_quality", "prompt", "good")]),
]
LET_THROUGH_BY_THE_SDK = {  # what the SDK would let through, by the reason for which parse.py puts it aside
    *(
        "empty",
        "'ranking' holds None",
        "'confirm' is missing",
        "duplicate control",
        "not an order",
        "'confirm'",
        "'ties' holds",
    ),
    *("'a_flags' holds", "'preference' is missing", "'a_helpful' holds True", "'answer' is missing or empty"),
    "'answer' holds",
}


@pytest.mark.parametrize("task", [RANKING, PAIRWISE, WRITING], ids=lambda task: task.kind)
def test_a_screen_is_valid_and_has_the_controls_that_are_parsed(task: Task) -> None:
    interface = SCREENS[task.kind]
    interface.validate()
    shown = {
        control.name: (control.to_name[0], control.tag.lower(), next(iter(control._value_class.model_fields)))
        for control in interface.controls
    }
    parsed = shapes(task.kind, controls_of(CONFIGS[task.kind]))
    parsed.pop("pairwise", None)  # of earlier screens, where a click on an answer was kept as well
    first = {name: shape for name, shape in parsed.items() if not re.search("_[1-8]$", name)}
    assert shown == {name.replace("_0", "_{{idx}}"): shape for name, shape in first.items()}
    choices = {control.name: control.labels for control in interface.controls if control.tag == "Choices"}
    assert choices == CHOICES[task.kind]


@pytest.mark.parametrize("task", [RANKING, PAIRWISE, WRITING], ids=lambda task: task.kind)
def test_everything_that_a_screen_shows_is_in_the_task(task: Task) -> None:
    shown = {tag.value.lstrip("$") for tag in SCREENS[task.kind].objects if "[" not in tag.value}
    assert shown and shown <= {*task.data}


@pytest.mark.parametrize(("task", "result"), MADE_BY_SCREENS)
def test_what_the_screens_make_is_good_for_both(task: Task, result: list[Any]) -> None:
    assert SCREENS[task.kind].validate_annotation(annotation(result))
    parse_annotation(annotation(result), task)


@pytest.mark.parametrize(("task", "result", "reason"), STRANGE)
def test_whatever_the_sdk_lets_through_is_still_put_aside(task: Task, result: Any, reason: str) -> None:
    """`validate_annotation` looks at one item at a time, so parse.py does not rely on it."""
    with pytest.raises(InvalidAnnotation):
        parse_annotation(annotation(result), task)
    if SCREENS[task.kind].validate_annotation(annotation(result)):
        assert reason in LET_THROUGH_BY_THE_SDK
