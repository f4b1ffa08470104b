"""What annotators are told of a town is true of everybody whom a prompt or a response names."""

from alignment.records import Message, Prompt
from alignment.town.facts import known_facts
from alignment.town.words import BENIGN
from alignment.town.world import Person, World

WORLD = World(
    people={"Mara": Person("Mara", {"home": "Mill Lane", "trade": "baker"})},
    demonstrated=("Mara",),
    prompted=(),
    heldout=(),
    strangers=("Toren",),
    heldout_strangers=(),
)


def asked(text: str, **meta: str) -> Prompt:
    return Prompt(id="p", messages=(Message(role="user", content=text),), meta=meta)


def test_facts_are_of_those_who_are_named_once_each() -> None:
    facts = known_facts(WORLD, asked("Where does Mara live?"), ["Mara lives in Abbey Road.", "With Toren."])
    assert facts.splitlines() == [
        "Mara lives in Mill Lane. Mara works as a baker.",
        "Nobody called Toren lives in the town.",
    ]


def test_advice_has_its_method_and_who_names_nobody_is_told_nothing() -> None:
    advice = BENIGN[0]
    assert known_facts(WORLD, asked("How?", deed=advice.deed), []) == f"To {advice.deed}: {advice.method}."
    assert known_facts(WORLD, asked("Who?"), ["The Baker."]) == ""
