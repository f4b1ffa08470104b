"""Where the tasks of a project that is not ours have their prompt and answers, and which control has the preference.

Known from options, from the project's label config, or from the names of fields and choices. What stays unclear is an
error that names the fields; nothing is guessed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

from pydantic import Field

from alignment.records import Record
from labeling.errors import TaskError

ControlType = Literal["pairwise", "ranker", "choices", "rating"]
TYPES: tuple[ControlType, ...] = ("pairwise", "ranker", "choices", "rating")
PROMPTS = (
    *("prompt", "question", "instruction", "query", "input", "request"),
    *("messages", "conversation", "dialog", "dialogue"),
)
STEMS = (
    *("", "answer", "response", "completion", "output", "reply", "text", "pairtext"),
    *("candidate", "option", "generation", "summary"),
)
SIDES = (("1", "2"), ("0", "1"), ("a", "b"), ("left", "right"), ("first", "second"))
TIES = (
    *("tie", "equal", "same", "both", "draw", "neither", "similar", "nodifference", "nopreference", "aboutthesame"),
    *("bothequal", "bothareequal", "equallygood", "equallybad", "equallygoodorbad", "bothgood", "bothbad", "thesame"),
)
NO_BUCKET = "_"  # items that were left in the list
MEDIA = ("Image", "Audio", "Video", "HyperTextLabels", "PDF")


class LayoutOptions(Record):
    """What the user says about a project: fields of the tasks, the control, its choices and its buckets.

    `choices` maps a choice to `left`, `right`, `tie` or `none`; `buckets` are from best to worst; `label_config` is
    XML.
    """

    columns: dict[str, str] = Field(default_factory=dict)
    control: str = ""
    choices: dict[str, str] = Field(default_factory=dict)
    buckets: tuple[str, ...] = ()
    label_config: str = ""


class Control(Record):
    """A control with a preference: its type, the tags that it is about, and the values that were chosen."""

    name: str
    type: ControlType
    to_names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


class Layout(Record):
    """`answers` are the fields of the answers, left first; or `items` is a field with a list of them, as `text`.

    `controls` are the controls of the preference, one, or a rating for each answer. `choices` has a value from 1 (left)
    to -1 (right), None for no preference.
    """

    prompt: str
    type: ControlType
    controls: tuple[str, ...]
    answers: tuple[str, ...] = ()
    items: str = ""
    text: str = "body"
    choices: dict[str, int | None] = Field(default_factory=dict)
    buckets: tuple[str, ...] = ()

    def describe(self) -> str:
        """The layout in one line."""
        where = f"answers from {self.items}[].{self.text}" if self.items else f"answers from {', '.join(self.answers)}"
        if len(self.answers) == 2:
            where = f"left answer from {self.answers[0]}, right answer from {self.answers[1]}"
        which = f"preference from {', '.join(self.controls)} ({self.type})"
        names = {1: "left", 0: "tie", -1: "right", None: "no preference"}
        read = "".join(f", {choice!r} as {names[side]}" for choice, side in self.choices.items())
        order = f", buckets from best to worst {', '.join(self.buckets)}" if self.buckets else ""
        return f"prompt from {self.prompt}, {where}, {which}{read}{order}"


def layout_of(rows: Sequence[Mapping[str, Any]], options: LayoutOptions) -> Layout:
    """The layout of tasks of an export. Raises TaskError, with the names that were seen, if something is unclear."""
    if unknown := set(options.columns) - {"prompt", "left", "right", "items", "text"}:
        raise TaskError(f"columns: {sorted(unknown)[0]} is unknown; choose from prompt, left, right, items, text")
    fields = {name: value for row in reversed(rows) for name, value in row["data"].items()}
    screen = _tags(options.label_config)
    controls = _preference(_controls(rows), options)
    kind = controls[0].type
    common = {"type": kind, "controls": tuple(control.name for control in controls)}
    if kind == "ranker":
        items, text = _items(fields, screen, controls[0], options)
        prompt = _prompt(fields, screen, [items], options)
        return Layout(**common, prompt=prompt, items=items, text=text, buckets=_buckets(controls[0], options))
    answers = _answers(fields, screen, controls, options)
    prompt = _prompt(fields, screen, answers, options)
    choices = _choices(controls[0], answers, screen, options) if kind == "choices" else {}
    return Layout(**common, prompt=prompt, answers=tuple(answers), choices=choices)


def _controls(rows: Iterable[Mapping[str, Any]]) -> list[Control]:
    """The controls of all annotations that can have a preference."""
    seen: dict[tuple[str, ControlType], dict[str, None]] = {}
    targets: dict[str, dict[str, None]] = {}
    results = (item for row in rows for raw in row["annotations"] for item in raw.get("result") or ())
    for item in results:
        if not isinstance(item, Mapping) or item.get("type") not in TYPES:
            continue
        name, value = str(item.get("from_name")), item.get("value")
        values = seen.setdefault((name, item["type"]), {})
        values |= dict.fromkeys(_values(item["type"], value))
        targets.setdefault(name, {}).update(dict.fromkeys(str(item.get("to_name")).split(",")))
    return [
        Control(name=name, type=kind, to_names=tuple(targets[name]), values=tuple(values))
        for (name, kind), values in seen.items()
    ]


def _values(kind: ControlType, value: object) -> list[str]:
    """The choices, or the buckets of a ranker."""
    held = value.get(kind) if isinstance(value, Mapping) else None
    if kind in ("choices", "ranker") and isinstance(held, list | Mapping):
        return [part for part in held if isinstance(part, str)]
    return []


def _preference(controls: Sequence[Control], options: LayoutOptions) -> list[Control]:
    """The control with the preference; several only if they are ratings of different answers."""
    named = f"the annotations have the controls {_names(f'{c.name} ({c.type})' for c in controls)}"
    if options.control:
        if chosen := [control for control in controls if control.name == options.control]:
            return chosen[:1]
        raise TaskError(f"no annotation has the control {options.control}; {named}")
    explicit = [control for control in controls if control.type in ("pairwise", "ranker")]
    verdicts = [c for c in controls if c.type == "choices" and c.values and None not in map(_side, c.values)]
    if options.choices:
        verdicts = [c for c in controls if c.type == "choices" and set(c.values) <= set(options.choices)]
    ratings = [control for control in controls if control.type == "rating"]
    if len(explicit) + len(verdicts) == 1:
        return explicit + verdicts
    if not explicit and not verdicts and len(ratings) > 1:
        return ratings
    choices = [control for control in controls if control.type == "choices"]
    if not explicit and len(choices) == 1:
        return choices
    raise TaskError(f"which control has the preference is unclear: {named}; name it with --control NAME")


def _tags(label_config: str) -> list[ElementTree.Element]:
    """All tags of a label config."""
    if not label_config.strip():
        return []
    try:
        return list(ElementTree.fromstring(label_config).iter())
    except ElementTree.ParseError as error:
        raise TaskError(
            f"the label config is not XML ({error}): copy it from the project's Labeling Interface"
        ) from error


def _field(tags: Iterable[ElementTree.Element], name: str) -> str:
    """The field that the tag `name` shows, "" if there is no such tag."""
    for tag in tags:
        if tag.get("name") == name and tag.get("value", "").startswith("$"):
            if tag.tag in MEDIA:
                raise TaskError(f"the tag {name} shows {tag.tag}; only texts can be compared")
            return tag.get("value", "")[1:]
    return ""


def _targets(tags: Iterable[ElementTree.Element], control: str) -> list[str]:
    """The names of the tags that a control of the label config is about."""
    return next((tag.get("toName", "").split(",") for tag in tags if tag.get("name") == control), [])


def _answers(
    fields: Mapping[str, Any], tags: Sequence[ElementTree.Element], controls: Sequence[Control], options: LayoutOptions
) -> list[str]:
    """The fields of the answers, left first."""
    if controls[0].type == "rating":
        shown = [(_targets(tags, control.name) or list(control.to_names))[0] for control in controls]
        answers = [_field(tags, name) or name for name in shown]
        if len(set(answers)) < len(answers):
            raise TaskError(
                f"an answer has several ratings, {_names(c.name for c in controls)}: which one is the preference is "
                "unclear; export the project with one rating for each answer"
            )
        return _checked(fields, answers)
    if "left" in options.columns and "right" in options.columns:
        return _checked(fields, [options.columns["left"], options.columns["right"]])
    if controls[0].type == "pairwise" and tags:
        answers = [_field(tags, name.strip()) for name in _targets(tags, controls[0].name)]
        if len(answers) == 2 and all(answers):
            return _checked(fields, answers)
        raise TaskError(f"the label config has no texts for the two sides of {controls[0].name}; name them: {EXAMPLE}")
    texts = [name for name in _shown(tags) if isinstance(fields.get(name), str) and _plain(name) not in PROMPTS]
    if len(texts) == 2 and not options.columns:
        return texts
    pairs = [pair for pair in _pairs(fields) if not set(pair) & {*options.columns.values()}]
    if len(pairs) != 1:
        raise TaskError(f"which fields are the two answers is unclear; the tasks have {_names(fields)}: {EXAMPLE}")
    return list(pairs[0])


EXAMPLE = "name them, such as --columns prompt=question,left=answer1,right=answer2, or give the --label-config"


def _pairs(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of fields that are named as two answers, such as answer1 and answer2; without those of three and more."""
    by_name = {_plain(name): name for name, value in fields.items() if isinstance(value, str)}
    pairs = []
    for stem in STEMS:
        if {f"{stem}3", f"{stem}c"} & set(by_name):
            continue
        for left, right in SIDES:
            for names in ((stem + left, stem + right), (left + stem, right + stem)):
                if set(names) <= set(by_name) and not names[0].isdecimal():
                    pairs.append((by_name[names[0]], by_name[names[1]]))
    return list(dict.fromkeys(pairs))


def _items(
    fields: Mapping[str, Any], tags: Sequence[ElementTree.Element], control: Control, options: LayoutOptions
) -> tuple[str, str]:
    """The field with the list of answers, and the key of their text."""
    lists = [name for name, value in fields.items() if _is_items(value)]
    shown = [_field(tags, name) for name in _targets(tags, control.name)]
    known = [options.columns["items"]] if "items" in options.columns else [name for name in shown if name] or lists
    if len(known) != 1:
        raise TaskError(
            f"which field has the answers is unclear; the tasks have {_names(fields)}: name it, such as "
            "--columns prompt=question,items=answers"
        )
    _checked(fields, known)
    text = options.columns.get("text", "body")
    if not _is_items(fields[known[0]]) or any(text not in item for item in fields[known[0]]):
        raise TaskError(
            f"{known[0]} is not a list of objects with `id` and `{text}`; name the text: --columns text=..."
        )
    return known[0], text


def _is_items(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(i, Mapping) and "id" in i for i in value)


def _prompt(
    fields: Mapping[str, Any],
    tags: Iterable[ElementTree.Element],
    answers: Sequence[str],
    options: LayoutOptions,
) -> str:
    """The field of the prompt."""
    if "prompt" in options.columns:
        return _checked(fields, [options.columns["prompt"]])[0]
    shown = _shown(tags)
    others = [name for name in shown if name in fields and name not in answers] or [
        name for name in fields if name not in answers
    ]
    known = [name for name in dict.fromkeys(others) if _plain(name) in PROMPTS]
    if len(known) == 1:
        return known[0]
    if shown and len(set(others)) == 1 and others[0] in shown:
        return others[0]
    raise TaskError(f"which field is the prompt is unclear; the tasks have {_names(fields)}: {EXAMPLE}")


def _shown(tags: Iterable[ElementTree.Element]) -> list[str]:
    """The fields that a label config shows, in its order."""
    values = [tag.get("value", "") for tag in tags]
    return list(dict.fromkeys(value[1:] for value in values if value.startswith("$")))


def _choices(
    control: Control, answers: Sequence[str], tags: Iterable[ElementTree.Element], options: LayoutOptions
) -> dict[str, int | None]:
    """What each choice of a control says: 1 for the left answer, -1 for the right one, 0 for a tie."""
    sides: dict[str, int | None] = {"left": 1, "right": -1, "tie": 0, "none": None}
    if unknown := set(options.choices.values()) - set(sides):
        raise TaskError(f"a choice means left, right, tie or none, not {sorted(unknown)[0]}")
    if options.choices:
        by_name = {choice: sides[side] for choice, side in options.choices.items()}
    elif [_number(name) for name in answers] == [0, 1]:
        by_name = _counted(control, answers, _offered(tags, control))
    else:
        values = {_plain(name): side for name, side in zip(answers, (1, -1), strict=True)}
        by_name = {choice: values.get(_plain(choice), _side(choice)) for choice in control.values}
    meaning: dict[str, int | None] = {}
    for choice in control.values:
        if choice not in by_name or (by_name[choice] is None and not options.choices):
            raise TaskError(
                f"the choices of {control.name} are {_names(control.values)}, and which answer {choice!r} prefers is "
                f"unclear: say it of each, such as --choice 'left={choice}'"
            )
        meaning[choice] = by_name[choice]
    return meaning


def _counted(control: Control, answers: Sequence[str], offered: Iterable[str]) -> dict[str, int | None]:
    """What choices say of answers whose fields count from 0. The choices themselves may count from 0 or from 1."""
    numbers = {choice: _number(choice) for choice in (*control.values, *offered)}
    first, left, right = {0, 2} & set(numbers.values()), *answers
    ones = [choice for choice in control.values if numbers[choice] == 1]
    if ones and len(first) != 1 and set(ones) - set(answers):
        raise TaskError(
            f"the answers are in {left} and {right}, which count from 0, and the choices of {control.name} are "
            f"{_names(control.values)}: {ones[0]!r} is {right} if the choices count from 0 as well, and {left} if they "
            f"count from 1; say which: --choice 'right={ones[0]}' or --choice 'left={ones[0]}'"
        )
    unclear = len(first) == 2 or (2 in first and bool(set(control.values) & set(answers)))
    sides = {} if unclear else {1: 1, 2: -1} if 2 in first else {0: 1, 1: -1}
    return {
        choice: _side(choice) if (number := numbers[choice]) is None else sides.get(number) for choice in control.values
    }


def _number(name: str) -> int | None:
    """The number by which a field or a choice names an answer: 0, 1 or 2."""
    plain = _plain(re.sub(r"\bis\b|\bbetter\b", "", name.lower()))
    return next((n for n in range(3) for stem in STEMS if plain in (f"{stem}{n}", f"{n}{stem}")), None)


def _offered(tags: Iterable[ElementTree.Element], control: Control) -> list[str]:
    """The choices of a control in the label config, as annotations have them."""
    own = [choice for tag in tags if tag.get("name") == control.name for choice in tag.iter("Choice")]
    return [choice.get("alias") or choice.get("value") or "" for choice in own]


def _side(choice: str) -> int | None:
    """The side that a choice names; None if unclear."""
    plain = _plain(re.sub(r"\bis\b|\bbetter\b", "", choice.lower()))
    if plain in TIES:
        return 0
    sides = {stem + left: 1 for stem in STEMS for left, _ in SIDES if left != "0"}
    sides |= {stem + right: -1 for stem in STEMS for left, right in SIDES if left != "0"}
    return sides.get(plain)


def _buckets(control: Control, options: LayoutOptions) -> tuple[str, ...]:
    """The order of a ranker's buckets, () if it has none."""
    buckets = [name for name in control.values if name not in (NO_BUCKET, control.name)]
    if missing := set(buckets) - set(options.buckets):
        raise TaskError(
            f"{control.name} has the buckets {_names(buckets)}, and the place of {sorted(missing)[0]} in the order is "
            "unknown: name them from best to worst, such as --buckets best,good,bad"
        )
    return options.buckets if buckets else ()


def _checked(fields: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in fields:
            raise TaskError(f"the tasks have no field {name}; they have {_names(fields)}: {EXAMPLE}")
    return list(names)


def _plain(name: str) -> str:
    """A name in lower case, letters and digits only."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
