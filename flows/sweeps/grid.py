"""The cells of a sweep: every recipe with every combination of option values, each with every seed."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from alignment.errors import ConfigError
from alignment.plain_yaml import plain_yaml
from alignment.records import Record
from flows.recipe.messages import shortened
from flows.recipe.schema import Recipe, load_recipe

MOST_SEEDS = 1000


class Cell(Record):
    """One run of a sweep: its recipe, with the options of its setting and one of the seeds."""

    setting: str
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"{self.setting}, seed {self.recipe.seed}"


def cells_of(recipes: Sequence[str], overrides: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells: all settings with the first seed, then with the second, and so on.

    So a sweep that is stopped has every setting with the same seeds. Raises ConfigError for options that cannot be run.
    """
    choices = [alternatives(override) for override in overrides]
    varied = [number for number, values in enumerate(choices) if len(values) > 1]
    combinations = list(itertools.product(*choices))
    cells = []
    for seed, name, options in itertools.product(seeds, recipes, combinations):
        recipe = load_recipe(name, [*options, f"seed={seed}"])
        shown = [options[number] for number in varied]
        cells.append(Cell(setting=" ".join([recipe.name, *_short_names(shown)]), recipe=recipe))
    names = [cell.name for cell in cells]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two cells are called {double!r}: name each recipe and each value once")
    return cells


def alternatives(override: str) -> list[str]:
    """KEY=VALUE,VALUE as overrides with one value each; commas within [], {} and quotes separate nothing."""
    key, equals, text = override.partition("=")
    if not equals or not text.strip():
        raise ConfigError(
            f"--set {shortened(override)}: write KEY=VALUE,VALUE, for example --set ppo.kl_coef=0.02,0.05"
        )
    try:
        values = plain_yaml(f"[{text}]")
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--set {shortened(override)}: the values are no list in YAML: {error}") from error
    return [f"{key}={_written(value)}" for value in values]


def _written(value: Any) -> str:
    """A value as YAML, without quotes where they change nothing."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and plain_yaml(value) == value
    return str(value) if plain else json.dumps(value, default=str, ensure_ascii=False)


def parse_seeds(text: str) -> list[int]:
    """Seeds from text such as 0-2 or 0,3,5-7. Raises ConfigError."""
    try:
        seeds = list(itertools.islice(_seeds(text), MOST_SEEDS + 1))
    except ValueError:
        raise ConfigError(f"--seeds {shortened(text)}: write numbers and ranges, as in 0-2 or 0,3,5-7") from None
    if not seeds or len(seeds) > MOST_SEEDS or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {shortened(text)}: give each seed once, at least 1 and at most {MOST_SEEDS}")
    return seeds


def _seeds(text: str) -> Iterator[int]:
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise ValueError(part)
        first = int(match[1])
        yield from range(first, int(match[2] or first) + 1)


def _short_names(options: Sequence[str]) -> list[str]:
    """Options with the last part of their key, and with the whole key where two end in the same part."""
    last = [option.partition("=")[0].rpartition(".")[2] for option in options]
    return [
        option if last.count(name) > 1 else f"{name}={option.partition('=')[2]}"
        for name, option in zip(last, options, strict=True)
    ]
