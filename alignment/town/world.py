"""The people of the town, drawn from a seed, and their split over the stages.

Every person appears in the pretraining text. Demonstrations cover the `demonstrated`, prompts for labelling and PPO
also the `prompted`; the `heldout` occur in evaluation prompts only. `strangers` do not exist.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment.config.stages import TownConfig
from alignment.town.words import ATTRIBUTES

ONSETS = ("B", "Br", "C", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "Th", "V", "W", "Z")
VOWELS = ("a", "e", "i", "o", "u")
MIDDLES = ("l", "r", "n", "m", "d", "v", "s", "t", "b", "k")
ENDINGS = ("a", "en", "in", "o", "is", "el", "ar", "y", "us", "ette")
STRANGERS = 96  # enough that "nobody I know" is learned, not a list of names


@dataclass(frozen=True)
class Person:
    """A name and a value for each attribute."""

    name: str
    facts: dict[str, str]


@dataclass(frozen=True)
class World:
    """The town: who exists, and which names occur in which stage."""

    people: dict[str, Person]
    demonstrated: tuple[str, ...]
    prompted: tuple[str, ...]
    heldout: tuple[str, ...]
    strangers: tuple[str, ...]
    heldout_strangers: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the facts, which only the gold judge reads."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> "World":
        """Read what `save` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        people = {name: Person(**person) for name, person in raw.pop("people").items()}
        return World(people=people, **{key: tuple(names) for key, names in raw.items()})


def draw_world(config: TownConfig, seed: int) -> World:
    """Draw the town of a seed: half its people demonstrated, another quarter prompted, the last quarter held out."""
    rng = random.Random(f"world-{seed}")
    strangers = max(STRANGERS, config.people // 2)
    names = draw_names(rng, config.people + 2 * strangers)
    known, unknown = names[: config.people], names[config.people :]
    people = {name: Person(name, {key: rng.choice(a.values) for key, a in ATTRIBUTES.items()}) for name in known}
    half, three_quarters = config.people // 2, config.people * 3 // 4
    return World(
        people=people,
        demonstrated=tuple(known[:half]),
        prompted=tuple(known[half:three_quarters]),
        heldout=tuple(known[three_quarters:]),
        strangers=tuple(unknown[:strangers]),
        heldout_strangers=tuple(unknown[strangers:]),
    )


def draw_names(rng: random.Random, count: int) -> list[str]:
    """Distinct two-syllable names, none of which is a word of the town."""
    taken = {word for a in ATTRIBUTES.values() for value in a.values for word in value.lower().split()}
    names: dict[str, None] = {}
    while len(names) < count:
        name = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(ENDINGS)
        if name.lower() not in taken:
            names[name] = None
    return list(names)
