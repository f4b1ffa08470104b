"""`--set KEY=VALUE`: single options of a recipe, changed before it is validated."""

from collections.abc import Sequence
from typing import Any

import yaml

from alignment.errors import ConfigError
from alignment.plain_yaml import plain_yaml
from flows.recipe.messages import shortened

LONGEST_OVERRIDE = 200  # characters in messages


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply one `a.b=VALUE` (VALUE is YAML) to nested mappings; numbers index lists."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {_shown(override)}: write KEY=VALUE, for example --set ppo.kl_coef=0.1")
    try:
        value = plain_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {_shown(override)}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    section: Any = values
    for part in parents:
        section = _step(section, part, override)
    if isinstance(section, list):
        section[_index(section, last, override)] = value
    else:
        section[last] = value


def _step(section: Any, part: str, override: str) -> Any:
    """The section one level down; an absent or null section is created."""
    if isinstance(section, list):
        index = _index(section, part, override)
        return section[index]
    if not isinstance(section.get(part), dict | list):
        if section.get(part) is not None:
            raise ConfigError(
                f"--set {_shown(override)}: {shortened(part)} is {shortened(repr(section[part]))} and has "
                "no options below it"
            )
        section[part] = {}
    return section[part]


def _index(items: Sequence[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            f"--set {_shown(override)}: '{shortened(part)}' must be a number from 0 to {len(items) - 1}: it is an "
            "index into a list"
        )
    return int(part)


def _shown(override: str) -> str:
    return shortened(override, LONGEST_OVERRIDE)
