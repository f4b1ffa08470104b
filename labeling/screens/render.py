"""Label configs and guidelines, rendered from the templates in this directory and the table of criteria.

Names in braces, such as {guidelines}, are filled in here.
"""

from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files

from markdown_it import MarkdownIt

from alignment.criteria import CRITERIA, Criterion
from labeling.config import Kind

RATINGS_INDENT = "\n" + 6 * " "  # indentation of {ratings_a} and {ratings_b} in pairwise.xml
NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
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


def _layout(name: str) -> str:
    return files("labeling").joinpath("screens", name).read_text(encoding="utf-8")


def _fill(layout: str, values: Mapping[str, str]) -> str:
    """The layout with `{name}` replaced by each value."""
    for name, value in values.items():
        layout = layout.replace(f"{{{name}}}", value)
    return layout


def _keys() -> dict[str, str]:
    """The hotkeys that rate A and B, in upper case as on a keyboard."""
    return {
        f"keys_{side}": " ".join(criterion.hotkeys[index].upper() for criterion in CRITERIA)
        for index, side in enumerate("ab")
    }


def guidelines() -> str:
    """The guidelines for annotators, as Markdown."""
    questions = "\n".join(f"- **{criterion.title}** - {criterion.question}" for criterion in CRITERIA)
    count = len(CRITERIA)
    values = {"questions": questions, "number_in_words": NUMBERS.get(count, str(count)), **_keys()}
    return _fill(_layout("guidelines.md"), values)


def instruction() -> str:
    """The guidelines as HTML for the dialog that Label Studio opens before the first task.

    The dialog removes styles, list marks and margins, so lists and headings are written as paragraphs.
    """
    html = str(MarkdownIt("commonmark", {"html": False}).render(guidelines()))
    for tag, plain in DIALOG_MARKUP.items():
        html = html.replace(tag, plain)
    return html


@cache
def screen(kind: Kind) -> str:
    """The label config of a kind of task, with style, guidelines and, for pairs, a rating for each criterion."""
    return _screen(kind, {"cut_style": "", "cut_a": "", "cut_b": ""})


@cache
def screen_with_cuts(kind: Kind) -> str:
    """The label config for tasks with answers that were cut off; for a list of answers it is the same one."""
    notes = {f"cut_{side}": _fill(_layout("cut.xml").strip(), {"side": side}) for side in "ab"}
    return _screen(kind, {"cut_style": _layout("cut.css"), **notes})


def _screen(kind: Kind, cuts: Mapping[str, str]) -> str:
    ratings = {
        f"ratings_{side}": RATINGS_INDENT.join(_rating(criterion, side, index) for criterion in CRITERIA)
        for index, side in enumerate("ab")
    }
    values = {
        "style": _layout("style.xml"),
        "question": _layout("question.xml").strip(),
        "number_of_criteria": str(len(CRITERIA)),
        **cuts,
        **ratings,
        **_keys(),
        "guidelines": escape(guidelines(), quote=True).replace("\n", "&#10;"),
    }
    return _fill(_layout(f"{kind}.xml"), values)


def _rating(criterion: Criterion, side: str, index: int) -> str:
    """The rating control for one criterion of response A (index 0) or B (index 1)."""
    key = criterion.hotkeys[index]
    values = {
        "title": escape(criterion.title, quote=True),
        "name": criterion.name,
        "side": side,
        "key": key,
        "key_label": key.upper(),
    }
    return _fill(_layout("rating.xml").strip(), values)
