"""Every option has a description: Prefect's forms show nothing else about it."""

from collections.abc import Iterator
from typing import Any

from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field, create_model

from alignment.artifacts import fingerprint
from alignment.config.base import Config
from flows.recipe.schema import Recipe


def options(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option of every section, as the form has it."""
    for section, model in schema["definitions"].items():
        for name, option in model.get("properties", {}).items():
            yield f"{section}.{name}", option


def described(option: dict[str, Any], sections: dict[str, Any]) -> bool:
    """A section is described by its own words."""
    return "description" in option or "description" in sections.get(option.get("$ref", "").rpartition("/")[2], {})


def of_recipe(recipe: Recipe) -> None:
    """A flow's signature."""


def test_every_option_is_described_in_the_form() -> None:
    schema = parameter_schema(of_recipe).model_dump_for_openapi()
    found = dict(options(schema))
    assert len(found) > 200
    sections = schema["definitions"]
    bare = [name for name, option in found.items() if not described(option, sections)]
    assert not bare, f"give Field(description=...) to {', '.join(bare)}"


def test_nested_defaults_are_in_the_form_but_for_options_that_are_off() -> None:
    schema = parameter_schema(of_recipe).model_dump_for_openapi()
    for name, option in schema["definitions"]["Recipe"]["properties"].items():
        section = Recipe.model_fields[name].annotation
        if "$ref" in option and isinstance(section, type) and issubclass(section, BaseModel):
            off = {key for key, field in section.model_fields.items() if field.exclude or field.exclude_if}
            assert section.model_fields.keys() - off <= option["default"].keys() <= section.model_fields.keys(), name


def test_a_description_is_no_part_of_a_key() -> None:
    bare = create_model("Options", __base__=Config, steps=(int, 3))
    told = create_model("Options", __base__=Config, steps=(int, Field(3, description="rollouts")))
    assert fingerprint(bare()) == fingerprint(told())
