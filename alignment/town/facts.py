"""What is true of the people of the town, as text for annotators who are asked to judge it."""

import re
from collections.abc import Iterable

from alignment.records import Prompt
from alignment.town.words import ATTRIBUTES, BENIGN
from alignment.town.world import World


def known_facts(world: World, prompt: Prompt, responses: Iterable[str]) -> str:
    """What is true of everybody whom the prompt or a response names, a line each; "" if that is nobody."""
    texts = (*(turn.content for turn in prompt.messages), *responses)
    words = dict.fromkeys(word for text in texts for word in re.findall(r"[A-Z][a-z]+", text))
    strangers = {*world.strangers, *world.heldout_strangers}
    lines = [about(world, name) for name in words if name in world.people or name in strangers]
    lines += [f"To {advice.deed}: {advice.method}." for advice in BENIGN if advice.deed == prompt.meta.get("deed")]
    return "\n".join(lines)


def about(world: World, name: str) -> str:
    """Every fact about a person of the town, in one line."""
    person = world.people.get(name)
    if person is None:
        return f"Nobody called {name} lives in the town."
    return " ".join(ATTRIBUTES[key].statements[0].format(name=name, v=value) for key, value in person.facts.items())
