"""The controls of a screen that follow from its guidelines: criteria and flags, read from the label config.

Old label configs are read in the same way, so what was judged with them is parsed by their own criteria and flags.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from alignment.criteria import CRITERION_NAMES
from alignment.records import Record
from labeling.screens.guidelines import shipped
from labeling.screens.render import MOST_ANSWERS, guidelines_version

Shape = tuple[str, str, str]  # to_name, type, key of the value
EARLIER_FLAGS = ("unsafe",)  # of earlier label configs of this package
RATING = re.compile(r"(?:[ab]_(?P<pair>[a-z_]+)|(?P<ranking>[a-z_]+)_(?:\{\{idx\}\}|\d))")
FLAGS = re.compile(r"[ab]_flags|flags_(?:\{\{idx\}\}|\d)")


class Controls(Record):
    """The criteria and flags of a screen, and the version of its guidelines, "" if unknown."""

    criteria: tuple[str, ...]
    flags: tuple[str, ...]
    guidelines: str = ""


@lru_cache(maxsize=64)
def controls_of(label_config: str) -> Controls:
    """The controls of a label config; those of the package's English screens for one that cannot be read."""
    try:
        tags = list(ElementTree.fromstring(label_config).iter())
    except ElementTree.ParseError:
        return known_controls()
    criteria = (criterion(tag.get("name", "")) for tag in tags if tag.tag == "Rating")
    flags = (
        choice.get("alias", choice.get("value", ""))
        for tag in tags
        if tag.tag == "Choices" and FLAGS.fullmatch(tag.get("name", ""))
        for choice in tag.iter("Choice")
    )
    return Controls(
        criteria=tuple(dict.fromkeys(filter(None, criteria))),
        flags=tuple(dict.fromkeys(flags)),
        guidelines=guidelines_version(label_config),
    )


def known_controls() -> Controls:
    """The controls of the package's English screens, this version's and earlier ones'."""
    flags = (*(flag.name for flag in shipped("en").flags), *EARLIER_FLAGS)
    return Controls(criteria=CRITERION_NAMES, flags=flags)


def controls_in(rows: Iterable[Mapping[str, Any]]) -> Controls:
    """The controls that the annotations of an export name, with the known ones: a file has no label config."""
    known = known_controls()
    items = [item for row in rows for raw in row["annotations"] for item in _items(raw.get("result"))]
    criteria = (criterion(str(item.get("from_name"))) for item in items if item.get("type") == "rating")
    flags = (
        flag
        for item in items
        if FLAGS.fullmatch(str(item.get("from_name"))) and isinstance(value := item.get("value"), Mapping)
        for flag in _names(value.get("choices"))
    )
    return Controls(
        criteria=tuple(dict.fromkeys((*known.criteria, *filter(None, criteria)))),
        flags=tuple(dict.fromkeys((*known.flags, *flags))),
    )


def _items(result: object) -> list[Mapping[str, Any]]:
    return [item for item in result if isinstance(item, Mapping)] if isinstance(result, list) else []


def _names(choices: object) -> list[str]:
    """The choices that have the form of a flag's name."""
    return (
        [name for name in choices if isinstance(name, str) and name.isidentifier()] if isinstance(choices, list) else []
    )


def criterion(name: str) -> str:
    """The criterion of a rating's control, "" for another control."""
    match = RATING.fullmatch(name)
    return "" if match is None else match["pair"] or match["ranking"]


def shapes(kind: str, controls: Controls) -> dict[str, Shape]:
    """The form of each control of a kind of task in an annotation, by name."""
    text, choices = ("prompt", "textarea", "text"), ("prompt", "choices", "choices")
    if kind == "demonstration":
        return {"answer": text, "prompt_quality": choices, "question": text}
    if kind == "pairwise":
        return (
            {
                "pairwise": ("pairwise", "pairwise", "selected"),
                "preference": choices,
                "rationale": text,
                "question": text,
            }
            | {
                f"{side}_{name}": (f"response_{side}", "rating", "rating")
                for side in "ab"
                for name in controls.criteria
            }
            | {f"{side}_flags": (f"response_{side}", "choices", "choices") for side in "ab"}
        )
    numbers = range(MOST_ANSWERS)
    return (
        {"ranking": ("responses", "ranker", "ranker"), "confirm": choices, "ties": choices, "question": text}
        | {f"{name}_{number}": ("prompt", "rating", "rating") for name in controls.criteria for number in numbers}
        | {f"flags_{number}": choices for number in numbers}
    )
