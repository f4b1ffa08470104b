"""Validation messages from Pydantic's errors: the key's path, the value, allowed values, and a guess for typos."""

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

LONGEST_VALUE = 80
Location = tuple[int | str, ...]


def validation_message(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """One line for each problem."""
    return "\n".join(f"  {_line(detail, model, values)}" for detail in error.errors())


def _line(detail: ErrorDetails, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    location = detail["loc"]
    path = shortened(".".join(map(str, location)))
    if detail["type"] == "extra_forbidden":
        return _unknown(path, location, model)
    if detail["type"] == "missing":
        return f"{path}: is missing; {_expected(model, location)}"
    if detail["type"] == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    if detail["type"] == "finite_number":
        return f"{path}: {_shown(detail['input'])} is not finite; {_expected(model, location)}"
    return f"{path}: {_shown(detail['input'])} is not allowed; {_expected(model, location)}"


def _unknown(path: str, location: Location, model: type[BaseModel]) -> str:
    owner = _model_at(model, location[:-1])
    allowed = sorted(owner.model_fields) if owner is not None else []
    close = difflib.get_close_matches(str(location[-1])[:LONGEST_VALUE], allowed, n=1)
    guess = f" Did you mean {'.'.join([*map(str, location[:-1]), close[0]])}?" if close else ""
    where = shortened(".".join(map(str, location[:-1]))) or "a recipe"
    return f"{path}: unknown key.{guess} {where} has: {', '.join(allowed)}"


def _shown(value: object) -> str:
    return shortened(repr(value))


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """The first characters of a text from outside, for messages."""
    return text if len(text) <= most else f"{text[:most]}…"


def _expected(model: type[BaseModel], location: Location) -> str:
    """The allowed values of the option at `location`."""
    field = _field_at(model, location)
    if field is None:
        owner = _model_at(model, location)
        options = ", ".join(sorted(owner.model_fields)) if owner else ""
        return f"it takes options: {options}" if options else "see flows/recipes/ for examples"
    return f"allowed is {_describe(field.annotation, field.metadata)}"


def _field_at(model: type[BaseModel], location: Location) -> FieldInfo | None:
    owner = _model_at(model, location[:-1])
    return None if owner is None else owner.model_fields.get(str(location[-1])) if location else None


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The model whose options are at `location`."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current is not None else None
        current = None if field is None else _model_in(field.annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside Optional, tuple and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(part) for part in get_args(annotation))
    return next((part for part in models if part is not None), None)


def _describe(annotation: Any, metadata: Sequence[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        words = [_describe(part, metadata) for part in arguments if part is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin in (tuple, list):
        return f"a list of {_describe(arguments[0], ())}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with {', '.join(sorted(annotation.model_fields))}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return f"{names.get(annotation, getattr(annotation, '__name__', str(annotation)))}{_bounds(metadata)}"


def _bounds(metadata: Sequence[Any]) -> str:
    words = []
    for constraint in _constraints(metadata):
        match constraint:
            case Ge(ge=bound):
                words.append(f"at least {bound}")
            case Gt(gt=bound):
                words.append(f"above {bound}")
            case Le(le=bound):
                words.append(f"at most {bound}")
            case Lt(lt=bound):
                words.append(f"below {bound}")
    return f" {' and '.join(words)}" if words else ""


def _constraints(metadata: Sequence[Any]) -> list[Any]:
    """Constraints, including those of a Field inside Annotated."""
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
