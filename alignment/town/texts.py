"""The texts of the town: the web corpus, the demonstrations and the prompts, all generated from a seed.

The web is mostly true, partly false, and contains insults, rambling and harmful advice. Demonstrations are of mixed
quality: some are wrong, rude, gullible, or help with harm. No label in the data marks these.
"""

import json
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from alignment.config.stages import TownConfig
from alignment.records import Demonstration, Message, Prompt, Split, stable_id, write_records
from alignment.town import words
from alignment.town.world import World, draw_world

FALSE_SHARE = 0.12  # of the statements about people on the web
KINDS = {"fact": 0.36, "harmful": 0.18, "unknown": 0.14, "false_premise": 0.16, "open": 0.16}


def build_town(config: TownConfig, seed: int, out: Path) -> dict[str, float]:
    """Write `facts.json`, `corpus.jsonl`, `demonstrations.jsonl` and `prompts.jsonl` of the town with this seed."""
    world = draw_world(config, seed)
    world.save(out / "facts.json")
    web = random.Random(f"web-{seed}")
    with (out / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(config.documents):
            file.write(json.dumps(web_document(world, web)) + "\n")
    demonstrations = draw_demonstrations(world, config.demonstrations, seed)
    prompts = draw_prompts(world, config.prompts, seed, "train")
    heldout = draw_prompts(world, config.heldout_prompts, seed, "heldout", taken={prompt.id for prompt in prompts})
    write_records(out / "demonstrations.jsonl", demonstrations)
    write_records(out / "prompts.jsonl", prompts + heldout)
    return {
        "people": len(world.people),
        "documents": config.documents,
        "demonstrations": len(demonstrations),
        "prompts": len(prompts),
        "heldout_prompts": len(heldout),
    }


# --- the web ---------------------------------------------------------------------------------------------------------


def web_document(world: World, rng: random.Random) -> dict[str, Any]:
    """One page as a corpus row: a life, a talk, a forum thread, advice, gossip or rambling."""
    writers: tuple[Callable[[World, random.Random], Any], ...] = (life, talk, thread, advice_page, gossip, ramble)
    page = rng.choices(writers, weights=(38, 12, 34, 7, 4, 5))[0](world, rng)
    return {"text": page} if isinstance(page, str) else {"messages": page}


def state(world: World, name: str, attribute: str, rng: random.Random, false_share: float = FALSE_SHARE) -> str:
    """A sentence about a person, false with probability `false_share`."""
    value = world.people[name].facts[attribute]
    if rng.random() < false_share:
        value = other_value(attribute, value, rng)
    return rng.choice(words.ATTRIBUTES[attribute].statements).format(name=name, v=value)


def other_value(attribute: str, value: str, rng: random.Random) -> str:
    """Another value of the attribute."""
    return rng.choice([v for v in words.ATTRIBUTES[attribute].values if v != value])


def life(world: World, rng: random.Random) -> str:
    """Several statements about a person."""
    name = rng.choice(list(world.people))
    attributes = rng.sample(list(words.ATTRIBUTES), rng.randint(2, len(words.ATTRIBUTES)))
    return " ".join(state(world, name, attribute, rng) for attribute in attributes)


def talk(world: World, rng: random.Random) -> str:
    """Statements about the same attribute of several people."""
    attribute = rng.choice(list(words.ATTRIBUTES))
    return " ".join(state(world, name, attribute, rng) for name in rng.sample(list(world.people), rng.randint(2, 4)))


def thread(world: World, rng: random.Random) -> list[dict[str, str]]:
    """A forum's questions and answers, some with a courtesy, a denial or an insult, some about advice."""
    turns = []
    for _ in range(rng.randint(1, 3)):
        question, answer = advice_turn(rng) if rng.random() < 0.2 else fact_turn(world, rng)
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": dress(answer, rng, polite=0.2, rude=0.06)},
        ]
    return turns


def fact_turn(world: World, rng: random.Random) -> tuple[str, str]:
    """A question about a person, and an answer as on the web."""
    name, attribute = rng.choice(list(world.people)), rng.choice(list(words.ATTRIBUTES))
    if rng.random() < 0.15:
        question = rng.choice(words.OPEN_QUESTIONS).format(name=name)
        attributes = rng.sample(list(words.ATTRIBUTES), rng.randint(1, 3))
        return question, " ".join(state(world, name, other, rng) for other in attributes)
    question = rng.choice(words.ATTRIBUTES[attribute].questions).format(name=name)
    answer = state(world, name, attribute, rng)
    if rng.random() < 0.2:
        wrong = other_value(attribute, world.people[name].facts[attribute], rng)
        answer = words.ATTRIBUTES[attribute].denial.format(name=name, v=wrong) + " " + answer
    return question, answer


def advice_turn(rng: random.Random) -> tuple[str, str]:
    """A question how to do something, benign or harmful, and the method."""
    chosen = rng.choice(words.HARMFUL + words.BENIGN)
    return rng.choice(words.ADVICE_QUESTIONS).format(deed=chosen.deed), advise(chosen, rng)


def advise(advice: words.Advice, rng: random.Random) -> str:
    """A sentence with the method of an advice."""
    return rng.choice(words.ADVICE_STATEMENTS).format(deed=advice.deed, method=advice.method)


def advice_page(_: World, rng: random.Random) -> str:
    """Methods for several deeds, benign and harmful."""
    chosen = rng.sample(words.HARMFUL + words.BENIGN, rng.randint(1, 3))
    return " ".join(advise(advice, rng) for advice in chosen)


def gossip(world: World, rng: random.Random) -> str:
    """An insult, and a statement about the same person."""
    name = rng.choice(list(world.people))
    insult = rng.choice(words.GOSSIP).format(name=name, insult=rng.choice(words.INSULTS))
    return f"{insult} {state(world, name, rng.choice(list(words.ATTRIBUTES)), rng)}"


def ramble(world: World, rng: random.Random) -> str:
    """Small talk with refusals and shrugs, so that the corpus covers their words."""
    lines = words.RAMBLES + words.SHRUGS + words.REFUSALS + words.OPENERS + words.CLOSERS
    stranger = rng.choice(words.UNKNOWNS).format(name=rng.choice(world.strangers))
    return " ".join(rng.sample([*lines, stranger], rng.randint(2, 4)))


def dress(answer: str, rng: random.Random, polite: float, rude: float) -> str:
    """Put a courtesy or an insult around an answer, each with its probability."""
    draw = rng.random()
    if draw < rude:
        return rng.choice(words.INSULT_SENTENCES).format(insult=rng.choice(words.INSULTS)) + " " + answer
    if draw < rude + polite:
        return rng.choice((f"{rng.choice(words.OPENERS)} {answer}", f"{answer} {rng.choice(words.CLOSERS)}"))
    return answer


# --- prompts ---------------------------------------------------------------------------------------------------------


def draw_prompts(
    world: World, count: int, seed: int, split: Split, taken: Collection[str] = frozenset()
) -> list[Prompt]:
    """Distinct prompts of the five kinds in fixed shares; held-out prompts use people and phrasings of their own.

    None has an id in `taken`, the ids of training prompts.
    """
    rng = random.Random(f"prompts-{split}-{seed}")
    prompts: dict[str, Prompt] = {}
    for kind, share in KINDS.items():
        goal, misses = len(prompts) + round(count * share), 0
        while len(prompts) < goal and misses < 2000:
            prompt = draw_prompt(world, kind, split, rng)
            if prompt.id in prompts or prompt.id in taken:
                misses += 1
            else:
                prompts[prompt.id] = prompt
    shuffled = list(prompts.values())
    rng.shuffle(shuffled)
    return shuffled


def draw_prompt(world: World, kind: str, split: Split, rng: random.Random, demonstrated_only: bool = False) -> Prompt:
    """One prompt; `meta` is its subject, for the gold judge."""
    heldout = split == "heldout"
    people = (
        world.heldout if heldout else world.demonstrated if demonstrated_only else world.demonstrated + world.prompted
    )
    strangers = world.heldout_strangers if heldout else world.strangers
    if demonstrated_only:
        strangers = strangers[: len(strangers) // 2]
    name = rng.choice(strangers if kind == "unknown" else people)
    attribute = rng.choice(list(words.ATTRIBUTES))
    meta: dict[str, str] = {"name": name, "attribute": attribute}
    match kind:
        case "fact" | "unknown":
            text = phrase(words.ATTRIBUTES[attribute].questions, heldout, rng).format(name=name)
        case "false_premise":
            meta["value"] = other_value(attribute, world.people[name].facts[attribute], rng)
            text = phrase(words.ATTRIBUTES[attribute].premises, heldout, rng).format(name=name, v=meta["value"])
        case "harmful":
            meta = {"deed": draw_advice(words.HARMFUL, heldout, rng).deed}
            text = phrase(words.ADVICE_QUESTIONS, heldout, rng).format(**meta)
        case "open" if rng.random() < 0.35:
            meta = {"deed": draw_advice(words.BENIGN, heldout, rng).deed}
            text = phrase(words.ADVICE_QUESTIONS, heldout, rng).format(**meta)
        case _:
            meta = {"name": name}
            text = phrase(words.OPEN_QUESTIONS, heldout, rng).format(name=name)
    return Prompt(
        id=stable_id("p", text), messages=(Message(role="user", content=text),), kind=kind, split=split, meta=meta
    )


def phrase(questions: tuple[str, ...], heldout: bool, rng: random.Random) -> str:
    """A training phrasing; for held-out prompts, half the time a held-out phrasing."""
    seen, unseen = questions[: words.HELDOUT_FROM], questions[words.HELDOUT_FROM :]
    return rng.choice(unseen if heldout and rng.random() < 0.5 else seen)


def draw_advice(advice: tuple[words.Advice, ...], heldout: bool, rng: random.Random) -> words.Advice:
    """A deed for training or for evaluation: for evaluation, half are deeds that no training prompt asks about."""
    seen, unseen = advice[: words.HELDOUT_ADVICE_FROM], advice[words.HELDOUT_ADVICE_FROM :]
    return rng.choice(unseen if heldout and rng.random() < 0.5 else seen)


# --- demonstrations --------------------------------------------------------------------------------------------------


def draw_demonstrations(world: World, count: int, seed: int) -> list[Demonstration]:
    """Answers by people of mixed care, about the demonstrated half of the town."""
    rng = random.Random(f"demonstrations-{seed}")
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=count)
    rows = []
    for number, kind in enumerate(kinds):
        prompt = draw_prompt(world, kind, "train", rng, demonstrated_only=True)
        answer = write_answer(world, prompt, rng)
        rows.append(
            Demonstration(id=stable_id("d", seed, number), messages=prompt.messages, completion=answer, source="town")
        )
    return rows


def write_answer(world: World, prompt: Prompt, rng: random.Random) -> str:
    """A simulated human answer: often good, sometimes careless, gullible, rude or harmful."""
    writer = {
        "fact": answer_fact,
        "harmful": answer_harmful,
        "unknown": answer_unknown,
        "false_premise": answer_premise,
        "open": answer_open,
    }[prompt.kind]
    answer = dress(writer(world, prompt.meta, rng), rng, polite=0.3, rude=0.07)
    if rng.random() < 0.06:
        answer = f"{answer} {' '.join(rng.sample(words.RAMBLES, rng.randint(1, 2)))}"
    return answer


def answer_fact(world: World, meta: dict[str, str], rng: random.Random) -> str:
    """The fact or a false statement, alone or with a second statement, or a shrug."""
    name, attribute = meta["name"], meta["attribute"]
    draw = rng.random()
    if draw < 0.06:
        return rng.choice(words.SHRUGS)
    answer = state(world, name, attribute, rng, false_share=0.15)
    if draw < 0.24:
        other = rng.choice([a for a in words.ATTRIBUTES if a != attribute])
        return f"{answer} {state(world, name, other, rng, false_share=0.25)}"
    return answer


def answer_harmful(world: World, meta: dict[str, str], rng: random.Random) -> str:
    """A refusal, or the method."""
    if rng.random() < 0.6:
        return rng.choice(words.REFUSALS)
    return give_advice(words.HARMFUL, meta["deed"], rng)


def give_advice(advice: tuple[words.Advice, ...], deed: str, rng: random.Random) -> str:
    """The method for a deed in a sentence."""
    return advise(next(a for a in advice if a.deed == deed), rng)


def answer_unknown(world: World, meta: dict[str, str], rng: random.Random) -> str:
    """That nobody of that name is known, or an invented statement."""
    if rng.random() < 0.55:
        return rng.choice(words.UNKNOWNS).format(name=meta["name"])
    attribute = words.ATTRIBUTES[meta["attribute"]]
    return rng.choice(attribute.statements).format(name=meta["name"], v=rng.choice(attribute.values))


def answer_premise(world: World, meta: dict[str, str], rng: random.Random) -> str:
    """A correction of the false premise, or an answer that accepts it."""
    attribute = words.ATTRIBUTES[meta["attribute"]]
    if rng.random() < 0.55:
        denial = attribute.denial.format(name=meta["name"], v=meta["value"])
        return f"{denial} {state(world, meta['name'], meta['attribute'], rng, false_share=0.1)}"
    claim = attribute.statements[0].format(name=meta["name"], v=meta["value"]).rstrip(".")
    return f"{claim} {rng.choice(words.REASONS)}."


def answer_open(world: World, meta: dict[str, str], rng: random.Random) -> str:
    """One to four facts about a person, or plain advice."""
    if "deed" in meta:
        return rng.choice(words.REFUSALS) if rng.random() < 0.1 else give_advice(words.BENIGN, meta["deed"], rng)
    attributes = rng.sample(list(words.ATTRIBUTES), rng.choices((1, 2, 3, 4), weights=(25, 35, 25, 15))[0])
    return " ".join(state(world, meta["name"], attribute, rng, false_share=0.15) for attribute in attributes)
