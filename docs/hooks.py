"""Hooks of the documentation's build: the table of every recipe option, and the spacing of formulas in docstrings."""

import json
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
    """An annotation in the words of a YAML file."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "null"
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(type_name(member) for member in arguments)
    if origin is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    return str(annotation.__name__)


def default(field: FieldInfo) -> str:
    """The default as YAML would have it; options within a default are shown where they are not their own default."""
    if field.is_required():
        return "required"
    return json.dumps(plain(field.get_default(call_default_factory=True)), ensure_ascii=False)


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").partition("\n\n")[0].split())


def code(text: str) -> str:
    shortened = text if len(text) <= 60 else text[:57] + "…"
    return f"`{cell(shortened)}`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
