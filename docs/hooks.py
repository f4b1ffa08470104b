"""Hooks of the documentation's build: the table of every recipe option, and the spacing of formulas in docstrings."""

import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flows.recipe.schema import Recipe

MARKER = "<!-- every option of a recipe -->"
PREFORMATTED = re.compile(r"(<pre.*?</pre>)", flags=re.DOTALL)
BETWEEN_FORMULAS = re.compile(r"(?<=\S) {4,}(?=\S)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of options where a page has the marker."""
    return markdown.replace(MARKER, "\n".join(option_tables(Recipe))) if MARKER in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Keep two formulas on one line of a docstring apart: browsers collapse the spaces between them."""
    parts = PREFORMATTED.split(html)
    return "".join(part if part.startswith("<pre") else BETWEEN_FORMULAS.sub(" \u2003 ", part) for part in parts)


def option_tables(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A section with a table for a model of options and for every model below it, in the order of the recipe."""
    nested = {name: below for name, field in model.model_fields.items() if (below := model_of(field.annotation))}
    plain = {name: field for name, field in model.model_fields.items() if name not in nested}
    yield from ("", f"## {path or 'Top level'}", "", first_paragraph(model), "")
    if plain:
        yield from ("| option | type | default | meaning |", "|---|---|---|---|")
        yield from (option_row(name, field) for name, field in plain.items())
    for name, below in nested.items():
        yield from option_tables(below, f"{path}.{name}" if path else name)


def option_row(name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", code(type_name(field.annotation)), code(default(field)), cell(field.description or ""))
    return "| " + " | ".join(cells) + " |"


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The model of options that an annotation is, or that it is when it is not null."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    return models[0] if len(models) == 1 else None


def type_name(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if get_args(annotation):
        text = str(annotation)
    text = re.sub(r"Annotated\[([\w.]+), .*?\](?=[\],) ]|$)", r"\1", text)
    return re.sub(r"\b(?:typing|pathlib|alignment|labeling|flows)\.(?:[\w]+\.)*", "", text).replace(" | ", " or ")


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return repr(value)


def first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").partition("\n\n")[0].split())


def code(text: str) -> str:
    shortened = text if len(text) <= 60 else text[:57] + "…"
    return f"`{cell(shortened)}`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
