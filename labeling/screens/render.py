"""Screens of annotators: label configs, rendered from the templates in this directory and the guidelines.

Names in braces, such as {guide}, are filled in here. A label config names the version of its guidelines in a class.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from markdown_it import MarkdownIt

from alignment.criteria import CRITERION_NAMES
from alignment.records import Record
from labeling.config import Kind, LabelingConfig
from labeling.errors import GuidelinesError
from labeling.names import config_hash
from labeling.screens.guidelines import Guidelines, read_guidelines, shipped

VERSION = re.compile(r"\bguidelines-([0-9a-f]{8})\b")
MOST_ANSWERS = 9
SLOT = re.compile(r"\{([a-z_0-9]+)\}")
DIALOG_MARKUP = {
    "<h1>": "<p><b>",
    "</h1>": "</b></p><br>",
    "<h2>": "<br><p><b>",
    "</h2>": "</b></p>",
    "<li>": "<p>\u2022 ",
    "</li>": "</p>",
    "<ul>": "",
    "</ul>": "",
    "<ol>": "",
    "</ol>": "<br>",
}


class Screen(Record):
    """What a project shows: its label config, and the guidelines as HTML for the dialog before the first task.

    `guidelines` is the version of the guidelines, `hash` that of the whole label config.
    """

    kind: Kind
    label_config: str
    instruction: str
    guidelines: str

    @property
    def hash(self) -> str:
        """A short hash of the label config."""
        return config_hash(self.label_config)


def screens(config: LabelingConfig) -> dict[Kind, Screen]:
    """The screens of a collection by kind of task. Raises GuidelinesError."""
    guidelines = read_guidelines(config.guidelines)
    names = {row.name for row in guidelines.criteria}
    if config.annotators == "simulated" and names != {*CRITERION_NAMES}:
        raise GuidelinesError(
            f"simulated annotators rate {', '.join(CRITERION_NAMES)}, but labeling.guidelines {config.guidelines} asks "
            f"for {', '.join(sorted(names))}: set labeling.annotators: people"
        )
    kinds: tuple[Kind, ...] = ("ranking", "pairwise", "demonstration")
    return {kind: screen(kind, guidelines, config.rankings.ratings) for kind in kinds}


def screen(kind: Kind, guidelines: Guidelines | None = None, ratings: bool = False) -> Screen:
    """The screen of a kind of task, by default with the package's English guidelines.

    `ratings`: a ranking also asks for stars for each answer.
    """
    guidelines = guidelines or shipped("en")
    return Screen(
        kind=kind,
        label_config=_label_config(kind, guidelines, ratings),
        instruction=instruction(guidelines, kind),
        guidelines=guidelines.version,
    )


def guidelines_version(label_config: str) -> str:
    """The version of the guidelines in a label config; for one of an earlier version of this package, its hash."""
    match = VERSION.search(label_config)
    return match[1] if match else config_hash(label_config)


def instruction(guidelines: Guidelines, kind: Kind) -> str:
    """The guidelines as HTML for the dialog of Label Studio.

    The dialog removes styles, list marks and margins, so lists and headings are written as paragraphs.
    """
    html = str(MarkdownIt("commonmark", {"html": False}).render(guidelines.text(kind)))
    for tag, plain in DIALOG_MARKUP.items():
        html = html.replace(tag, plain)
    return f'<div dir="{guidelines.direction}">{html}</div>'


def _layout(name: str) -> str:
    return files("labeling").joinpath("screens", name).read_text(encoding="utf-8").strip()


def _fill(layout: str, values: Mapping[str, str]) -> str:
    """The layout with each `{name}` of `values` replaced; other braces, as those of styles and repeaters, stay."""
    return SLOT.sub(lambda slot: values.get(slot[1], slot[0]), layout)


def _attribute(text: str) -> str:
    """A text as the value of an attribute; `$` starts a field of the task in Label Studio."""
    return escape(text, quote=True).replace("\n", "&#10;").replace("$", "&#65284;")


def _label_config(kind: Kind, guidelines: Guidelines, ratings: bool) -> str:
    labels = {name: _attribute(text) for name, text in guidelines.labels.model_dump().items()}
    texts = {"guidelines_text": _attribute(guidelines.text(kind)), "keys_text": _attribute(_keys(kind, guidelines))}
    values = labels | texts
    parts = {
        "classes": f"guidelines-{guidelines.version} {guidelines.direction}",
        "style": _fill(_layout("style.xml"), {"direction": guidelines.direction}),
        "guide": _fill(_layout("guide.xml"), values),
        "question": _fill(_layout("question.xml"), values),
        "notes": _fill(_layout("notes.xml"), values),
        "hidden_ties": _hidden_ties(),
    }
    if kind == "pairwise":
        parts |= {f"side_{side}": _side(side, index, guidelines, values) for index, side in enumerate("ab")}
    if kind == "ranking":
        parts["each_answer"] = _each_answer(guidelines, ratings, values)
    return _fill(_layout(f"{kind}.xml"), values | parts) + "\n"


def _side(side: str, index: int, guidelines: Guidelines, labels: Mapping[str, str]) -> str:
    """Answer A (index 0) or B (index 1) with its stars and flags."""
    letter = side.upper()
    ratings = [
        _rating(
            _named_key(guidelines.labels.key, row.title, letter, row.keys[index]),
            f"{side}_{row.name}",
            f"response_{side}",
            row.keys[index],
        )
        for row in guidelines.criteria
    ]
    values = {
        "side": side,
        "letter": letter,
        "stars_title": labels["stars"].replace("{side}", letter),
        "ratings": "\n        ".join(ratings),
        "flag_choices": _flags(guidelines, labels["flags"], f"{side}_flags", f"response_{side}", letter, index),
    }
    return _fill(_layout("side.xml"), {**labels, **values})


def _each_answer(guidelines: Guidelines, ratings: bool, labels: Mapping[str, str]) -> str:
    """Flags for each answer of a ranking and, with `ratings`, stars; "" without either."""
    if not (ratings or guidelines.flags):
        return ""
    stars = [_rating(row.title, f"{row.name}_{{{{idx}}}}", "prompt") for row in guidelines.criteria if ratings]
    values = {
        "open": str(ratings).lower(),
        "ratings": "\n            ".join(stars),
        "flag_choices": _flags(guidelines, labels["flags"], "flags_{{idx}}", "prompt", "$responses[{{idx}}].title"),
    }
    return _fill(_layout("each.xml"), {**labels, **values})


def _named_key(label: str, criterion: str, side: str, key: str) -> str:
    """The title of a row of stars, with the key that adds one."""
    return label.replace("{criterion}", criterion).replace("{side}", side).replace("{key}", key.upper())


def _rating(title: str, name: str, about: str, key: str = "") -> str:
    """A row of stars."""
    values = {"rating_title": _attribute(title), "rating_name": name, "object": about}
    return _fill(_layout("rating.xml"), values | {"hotkey": f' hotkey="{key}"' if key else ""})


def _flags(guidelines: Guidelines, label: str, name: str, about: str, side: str, index: int | None = None) -> str:
    """The flags of the answer `side`; `index` 0 or 1 gives them the keys of answer A or B."""
    if not guidelines.flags:
        return ""
    choices = []
    for flag in guidelines.flags:
        key = f' hotkey="{flag.keys[index]}"' if flag.keys and index is not None else ""
        shown = f'value="{side}: {_attribute(flag.title)}" alias="{flag.name}" hint="{_attribute(flag.meaning)}"'
        choices.append(f"          <Choice {shown}{key}/>")
    title = label.replace("{side}", side)
    control = f'<Choices name="{name}" toName="{about}" choice="multiple" showInline="true">'
    return "\n".join([f'<Header value="{title}" size="5"/>', f"        {control}", *choices, "        </Choices>"])


def _hidden_ties() -> str:
    """Rules that hide ties of answers that a task does not have."""
    return "\n".join(
        f"    .desk:not(:has(.htx-ranker-item:nth-child({count}))) .ties .lsf-choice:nth-child({count - 1}) "
        "{ display: none; }"
        for count in range(3, MOST_ANSWERS + 1)
    )


def _keys(kind: Kind, guidelines: Guidelines) -> str:
    """What each key does, as Markdown."""
    labels = guidelines.labels
    first: dict[Kind, str] = {
        "pairwise": labels.keys_pairwise,
        "ranking": labels.keys_ranking,
        "demonstration": labels.keys_demonstration,
    }
    rows: Sequence[tuple[str, str]] = ()
    if kind == "pairwise":
        keyed = [(mark.title, mark.keys) for mark in guidelines.marks if mark.keys]
        rows = [(f"{title}, {side}", keys[index]) for index, side in enumerate("AB") for title, keys in keyed]
    lines = [f"- {first[kind]}", *(f"- **{key.upper()}**: {title}" for title, key in rows), f"- {labels.keys_all}"]
    return "\n".join(lines)
