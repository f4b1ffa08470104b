"""Simulated annotators, who work through the server's API like people.

Each has an account, a token and preferences. An annotator reads a task from the server, scores each response by

    u = w · (score by criterion) + b_length · length + b_polite · politeness,

adds Gumbel noise of scale T and sorts the responses by the sums. This is the Plackett-Luce model, and for two responses
Bradley-Terry: P(a over b) = sigmoid((u_a - u_b) / T). Near-equal responses are decided almost at random.

An annotator's judgement of a task depends only on the seed, the annotator and the task's uid. Some annotators may have
bad habits (`CrewConfig`), to test screening: careless ones judge at random, side-biased ones prefer the first response
shown, spamming ones submit the task unchanged within seconds, and colluding ones all submit one shared answer.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from alignment.criteria import CRITERIA, CRITERION_NAMES
from alignment.records import Record
from labeling.authors import CREW, author
from labeling.config import CrewConfig
from labeling.server.client import LabelStudio
from labeling.server.users import Account, derived_password, ensure_account
from labeling.tasks.projects import Project

Judge = Callable[[str, str], Mapping[str, float]]
Habit = Literal["careful", "careless", "side_biased", "spamming", "colluding"]
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gita", "Hugo", "Iris", "Jon")
POLITE_WORDS = ("please", "thank", "sorry", "glad", "happy to", "welcome", "of course", "i'm afraid", "kind")
EULER_GAMMA = 0.5772156649
TIE_BETTER_MUCH = (0.25, 1.2, 2.6)
SIDE_PULL = 4.0  # of a side-biased annotator towards the first position, in units of noise
RING = "ring"  # seeds the shared answer of colluding annotators


class Annotator(Record):
    """One simulated annotator: preferences, noise relative to the crew, reading speed, and habit.

    A careless or colluding annotator judges at random in a share `careless_rate` of the tasks.
    """

    email: str
    name: str
    weights: tuple[float, ...]
    likes_length: float
    likes_politeness: float
    likes_first: float
    noisiness: float
    words_per_second: float
    habit: Habit = "careful"
    careless_rate: float = 0.0

    def utility(self, verdict: Mapping[str, float], text: str, typical_words: float, shown_first: bool) -> float:
        """The annotator's utility of a response, before noise."""
        length = math.tanh(math.log(max(len(text.split()), 1) / typical_words))
        polite = any(word in text.lower() for word in POLITE_WORDS)
        gold = sum(weight * verdict[name] for weight, name in zip(self.weights, CRITERION_NAMES, strict=True))
        return gold + self.likes_length * length + self.likes_politeness * polite + self.likes_first * shown_first


def make_crew(config: CrewConfig) -> list[Annotator]:
    """The annotators of a seed. `config.bias` scales the spread of their preferences; bad habits come last."""
    crew = []
    habits = _habits(config)
    for index in range(config.annotators):
        rng = random.Random(f"crew:{config.seed}:{index}")
        raw = [math.exp(0.35 * config.bias * rng.gauss(0, 1)) * criterion.annotator_weight for criterion in CRITERIA]
        name = NAMES[index % len(NAMES)] + (str(index // len(NAMES) + 1) if index >= len(NAMES) else "")
        crew.append(
            Annotator(
                email=f"{name.lower()}.{config.seed}{CREW}",
                name=name,
                weights=tuple(weight / sum(raw) for weight in raw),
                likes_length=config.bias * rng.gauss(0.04, 0.04),
                likes_politeness=config.bias * rng.gauss(0.1, 0.04),
                likes_first=config.bias * abs(rng.gauss(0, 0.02)),
                noisiness=math.exp(0.25 * rng.gauss(0, 1)),
                words_per_second=rng.uniform(2.0, 6.0),
                habit=habits[index],
                careless_rate=config.careless_rate,
            )
        )
    return _share_preferences(crew)


def _share_preferences(crew: Sequence[Annotator]) -> list[Annotator]:
    """The crew, with all colluding annotators sharing the preferences of the first of them."""
    leader = next((annotator for annotator in crew if annotator.habit == "colluding"), None)
    own = {"email", "name", "words_per_second"}
    shared = {} if leader is None else {key: value for key, value in leader if key not in own}
    return [annotator.model_copy(update=shared) if annotator.habit == "colluding" else annotator for annotator in crew]


def _habits(config: CrewConfig) -> list[Habit]:
    """The habit of each annotator."""
    counts: dict[Habit, int] = {
        "careless": config.careless,
        "side_biased": config.side_biased,
        "spamming": config.spamming,
        "colluding": config.colluding,
    }
    bad = [habit for habit, count in counts.items() for _ in range(count)]
    careful: list[Habit] = ["careful"]
    return careful * (config.annotators - len(bad)) + bad


def responses_of(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(id, text) of the responses in a task's data, in the order shown."""
    if "responses" in data:
        return [(str(item["id"]), str(item["body"])) for item in data["responses"]]
    return [(str(data[f"{side}_id"]), str(data[f"response_{side}"])) for side in "ab"]


def utilities(annotator: Annotator, data: Mapping[str, Any], prompt_id: str, judge: Judge) -> list[float]:
    """The annotator's utilities of a task's responses, in the order shown."""
    texts = [text for _, text in responses_of(data)]
    words = max(sum(len(text.split()) for text in texts) / len(texts), 1.0)
    return [annotator.utility(judge(prompt_id, text), text, words, i == 0) for i, text in enumerate(texts)]


def gumbel(rng: random.Random) -> float:
    """A sample of the standard Gumbel distribution, less its mean."""
    return -math.log(-math.log(rng.random() or 1e-300)) - EULER_GAMMA


def work_on(
    annotator: Annotator, data: Mapping[str, Any], prompt_id: str, judge: Judge, temperature: float, seed: int
) -> tuple[list[dict[str, Any]], float]:
    """(Result in the format that the browser submits, lead time in seconds) of the annotator for a task."""
    if annotator.habit == "spamming":
        return _spam(annotator, data, seed)
    seed_name = RING if annotator.habit == "colluding" else annotator.email
    rng = random.Random(f"{seed}:{seed_name}:{data['uid']}")
    shown = responses_of(data)
    scale = temperature * annotator.noisiness
    careless = annotator.habit in ("careless", "colluding") and rng.random() < annotator.careless_rate
    utility = [0.0] * len(shown) if careless else utilities(annotator, data, prompt_id, judge)
    if annotator.habit == "side_biased":
        utility = [u + SIDE_PULL * scale * (1 - i / (len(shown) - 1)) for i, u in enumerate(utility)]
    noisy = [u + scale * gumbel(rng) for u in utility]
    words = sum(len(text.split()) for _, text in shown) + len(str(data["prompt"]).split())
    lead_time = round((4.0 + words / annotator.words_per_second) * math.exp(0.3 * rng.gauss(0, 1)), 3)
    if "responses" in data:
        order = sorted(range(len(shown)), key=lambda i: -noisy[i])
        return ranking_result([shown[i][0] for i in order]), lead_time
    stars = [
        [_stars(rng.random() if careless else judge(prompt_id, text)[name], rng) for name in CRITERION_NAMES]
        for _, text in shown
    ]
    return pairwise_result((noisy[0] - noisy[1]) / scale, stars), lead_time


def _spam(annotator: Annotator, data: Mapping[str, Any], seed: int) -> tuple[list[dict[str, Any]], float]:
    """The ranking as shown, or a random side."""
    rng = random.Random(f"{seed}:{annotator.email}:{data['uid']}")
    lead_time = round(rng.uniform(0.8, 2.5), 3)
    if "responses" in data:
        return ranking_result([identity for identity, _ in responses_of(data)]), lead_time
    return pairwise_result(rng.choice((-1.5, 1.5)), [[3] * len(CRITERIA)] * 2), lead_time


def _stars(score: float, rng: random.Random) -> int:
    """1 to 5 stars for a score in 0..1, with noise."""
    return max(1, min(5, round(1 + 4 * score + rng.gauss(0, 0.4))))


def ranking_result(order: Sequence[str]) -> list[dict[str, Any]]:
    """The result that the ranking screen submits."""
    return [
        {
            "type": "ranker",
            "from_name": "ranking",
            "to_name": "responses",
            "value": {"ranker": {"ranking": list(order)}},
        },
        {"type": "choices", "from_name": "confirm", "to_name": "prompt", "value": {"choices": ["ranked"]}},
    ]


def pairwise_result(difference: float, stars: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The result of the pairwise screen for a utility difference (A over B, in units of noise) and stars."""
    size = sum(abs(difference) > threshold for threshold in TIE_BETTER_MUCH)
    choice = f"{'a' if difference > 0 else 'b'}_{size}" if size else "tie"
    result: list[dict[str, Any]] = [
        {"type": "choices", "from_name": "preference", "to_name": "prompt", "value": {"choices": [choice]}}
    ]
    for letter, ratings in zip("ab", stars, strict=True):
        for name, value in zip(CRITERION_NAMES, ratings, strict=True):
            control = {"type": "rating", "from_name": f"{letter}_{name}", "to_name": f"response_{letter}"}
            result.append(control | {"value": {"rating": value}})
    return result


def deal(uids: Sequence[str], crew: Sequence[Annotator], overlap: int, seed: int) -> dict[str, list[str]]:
    """The e-mail addresses of the annotators of each task, by uid: `overlap` different ones each, with equal loads."""
    load = {annotator.email: 0 for annotator in crew}
    assigned: dict[str, list[str]] = {}
    for uid in sorted(uids):
        rng = random.Random(f"deal:{seed}:{uid}")
        emails = sorted(load, key=lambda email: (load[email], rng.random()))[:overlap]
        for email in emails:
            load[email] += 1
        assigned[uid] = emails
    return assigned


def crew_accounts(owner: LabelStudio, crew: Sequence[Annotator]) -> dict[str, Account]:
    """An account for each annotator, by e-mail; created on the first call, logged in to on later ones."""
    return {
        annotator.email: ensure_account(
            owner, annotator.email, derived_password(owner.token, annotator.email), annotator.name
        )
        for annotator in crew
    }


def _work_left(
    owner: LabelStudio,
    project: Project,
    uids: set[str],
    crew: Sequence[Annotator],
    accounts: Mapping[str, Account],
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """The remaining tasks (id and data) of each annotator, by e-mail."""
    rows = {row["data"].get("uid"): row for row in owner.tasks_with_annotations(project.id)}
    ids = {account.id for account in accounts.values()}
    judged_by = {
        uid: {author(annotation) for annotation in row["annotations"] if not annotation["was_cancelled"]} & ids
        for uid, row in rows.items()
    }
    work: dict[str, list[dict[str, Any]]] = {annotator.email: [] for annotator in crew}
    for uid, emails in deal(sorted(uids & set(rows)), crew, project.overlap, seed).items():
        already = judged_by[uid]
        remaining = [email for email in emails if accounts[email].id not in already]
        for email in remaining[: max(project.overlap - len(already), 0)]:
            work[email].append(rows[uid])
    return work


def annotate_project(
    owner: LabelStudio,
    project: Project,
    prompt_ids: Mapping[str, str],
    crew: Sequence[Annotator],
    accounts: Mapping[str, Account],
    judge: Judge,
    temperature: float,
    config: CrewConfig,
) -> int:
    """Have the crew judge the remaining tasks in `prompt_ids` (uid → prompt id); return the number submitted.

    A task gets as many judgements of the crew as the project's overlap, whatever others judge in the project. Nobody
    judges a task twice, even over several calls.
    """
    work = _work_left(owner, project, set(prompt_ids), crew, accounts, config.seed)

    def submit_all(annotator: Annotator) -> int:
        with LabelStudio(owner.url, accounts[annotator.email].token.get_secret_value()) as client:
            for row in work[annotator.email]:
                prompt_id = prompt_ids[row["data"]["uid"]]
                result, lead_time = work_on(annotator, row["data"], prompt_id, judge, temperature, config.seed)
                client.annotate(row["id"], result, lead_time)
        return len(work[annotator.email])

    with ThreadPoolExecutor(config.threads) as pool:
        return sum(pool.map(submit_all, crew))
