"""Whether screening finds the bad annotators of a crew, and what weights are worth to a reward model.

    rlhf run town
    python -m benchmarks.screening --artifacts .rlhf/artifacts --train majority --train "majority, weights"

A crew of twelve, three of them bad (careless, side-biased, spamming), judges the responses of a town as the labelling
stage would have them do. It goes without a server: what an annotator says of a task does not depend on one. Two good
annotators and a fifth of the prompts are held out. Then a logistic regression on words is trained on what the others
said of the other prompts, in each of several ways, and asked what the held-out annotators say of every held-out prompt;
with `--train`, so is the town's reward model itself. Seeds draw crews; the towns are those found, in turn.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from alignment.data.comparisons import aggregated
from alignment.journal import Journal
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_causal_model, reward_scores
from alignment.records import Comparison, ResponseSet, read_records
from alignment.reward_model.train import group_by_prompt, train_groups, untrained
from alignment.statistics import bag_of_words_accuracy
from alignment.town import Judge
from flows.annotation.collect import town_answers
from flows.recipe.schema import load_recipe
from labeling.config import CrewConfig, Kind, QualityOptions, Screening
from labeling.judgements.comparisons import comparisons
from labeling.judgements.judgement import Judged
from labeling.judgements.parse import parse_annotation
from labeling.quality.assess import Assessment, assess
from labeling.simulation.crew import Annotator, deal, make_crew, utilities, work_on
from labeling.simulation.crew import Judge as Criteria
from labeling.simulation.temperature import fitting_temperature
from labeling.tasks.gold import Answers, gold_tasks
from labeling.tasks.tasks import Task, build_tasks

HOME = Path(__file__).parent.parent / ".bench"
CREW: dict[str, Any] = {"annotators": 12, "careless": 1, "side_biased": 1, "spamming": 1}
RANKED, COMPARED, OVERLAP, GOLD_SHARE, HELD_ANNOTATORS, HELD_PROMPTS = 400, 100, 3, 0.05, 2, 0.2
WAYS = (
    "majority",
    "majority, weights",
    "each, no weights",
    "each, weights",
    "soft, no weights",
    "soft, weights",
    "screened majority",
    "screened majority, weights",
    "screened, weights",
    "screened, soft weights",
    "good annotators alone",
    "good annotators' majority",
)


def towns(artifacts: Path) -> list[dict[str, Path]]:
    """What the runs under `artifacts` left: responses, and the town and SFT behind them."""
    by_key = {}
    for place in sorted(artifacts.glob("*/provenance.json")):
        told = json.loads(place.read_text(encoding="utf-8"))
        by_key[told["key"]] = (place.parent, told)

    def behind(told: dict[str, Any], name: str) -> tuple[Path, dict[str, Any]]:
        return by_key[told["inputs"][name]["key"]]

    found = []
    for place, told in by_key.values():
        if told["stage"] == "responses":
            sft, _ = behind(told, "model")
            town, _ = behind(behind(told, "prompts")[1], "town")
            found.append({"responses": place, "town": town, "sft": sft})
    return sorted(found, key=lambda paths: json.loads((paths["town"] / "provenance.json").read_text())["seed"])


@dataclass(frozen=True)
class Work:
    """A crew with its tasks, some of which are gold; annotators are known by their place in the crew, from 1."""

    crew: list[Annotator]
    tasks: dict[str, Task]
    answers: Answers
    judge: Criteria
    heat: float
    seed: int

    @property
    def bad(self) -> set[str]:
        """The annotators with a bad habit."""
        return {str(place) for place, one in enumerate(self.crew, start=1) if one.habit != "careful"}

    def judged(self, dealt: Mapping[str, Iterable[str]]) -> list[Judged]:
        """What the annotators say of the tasks dealt to them (e-mails by uid)."""
        said: list[Judged] = []
        for uid, emails in dealt.items():
            task, these = self.tasks[uid], set(emails)
            for place, one in enumerate(self.crew, start=1):
                if one.email in these:
                    result, seconds = work_on(one, task.data, task.prompt.id, self.judge, self.heat, self.seed)
                    raw = {"id": len(said) + 1, "completed_by": place, "lead_time": seconds, "result": result}
                    said.append(parse_annotation(raw, task))
        return said


def work_of(paths: dict[str, Path], seed: int) -> Work:
    """The tasks of a town, gold ones among them, and a crew that agrees as the town's does."""
    sets, _ = read_records(paths["responses"] / "responses.jsonl", ResponseSet)
    gold_judge = Judge.load(paths["town"] / "facts.json")
    prompts = {one.prompt.id: one.prompt for one in sets}

    @cache
    def judge(prompt_id: str, text: str) -> Mapping[str, float]:
        return gold_judge(prompts[prompt_id], text).scores

    chosen = {"ranking": sets[:RANKED], "pairwise": sets[RANKED : RANKED + COMPARED]}
    tasks = [task for kind, some in chosen.items() for task in build_tasks(kind, some, seed)[0]]  # type: ignore[arg-type]
    counts: dict[Kind, int] = {"ranking": round(GOLD_SHARE * RANKED), "pairwise": round(GOLD_SHARE * COMPARED)}
    known = town_answers(sets[RANKED + COMPARED :], gold_judge)
    gold = gold_tasks(known, counts, {task.uid for task in tasks}, seed, {one.prompt.id: one.responses for one in sets})
    config = CrewConfig(seed=seed, **CREW)
    crew = make_crew(config)
    good = [one for one in crew if one.habit == "careful"]
    scored = [[utilities(one, task.data, task.prompt.id, judge) for one in good] for task in tasks]
    every = {task.uid: task for task in [*tasks, *gold.tasks["ranking"], *gold.tasks["pairwise"]]}
    return Work(crew, every, gold.answers, judge, fitting_temperature(good, scored, config.agreement), seed)


def ways(work: Work, said: list[Judged]) -> dict[str, list[Comparison]]:
    """The training comparisons that each way makes of what was said."""
    everybody = assess(said, work.tasks, {}, QualityOptions(), work.answers)
    screened = assess(said, work.tasks, {}, QualityOptions(screening=Screening(apply=True)), work.answers)
    rows, kept = everybody.comparisons, screened.comparisons
    plain, sound = ([row.model_copy(update={"weight": 1.0}) for row in some] for some in (rows, kept))
    good = [row for row in plain if row.annotator_id not in work.bad]
    made = (
        aggregated(plain, "majority"),
        aggregated(rows, "majority"),
        plain,
        rows,
        aggregated(plain, "soft"),
        aggregated(rows, "soft"),
        aggregated(sound, "majority"),
        aggregated(kept, "majority"),
        kept,
        aggregated(kept, "soft"),
        good,
        aggregated(good, "majority"),
    )
    return {name: [row for row in some if row.weight > 0] for name, some in zip(WAYS, made, strict=True)}


def reward_accuracy(
    paths: dict[str, Path], train: list[Comparison], test: list[Comparison], seed: int, epochs: float
) -> float:
    """The share of `test` that the town's reward model has in order after training on `train`."""
    config = load_recipe("town", [f"reward.epochs={epochs}"]).reward
    tokenizer, language_model = load_tokenizer(paths["sft"] / "model"), load_causal_model(paths["sft"] / "model")
    groups, tested = (group_by_prompt(rows, tokenizer, config.max_length_tokens)[0] for rows in (train, test))
    torch.manual_seed(seed)
    model, language_head = untrained(language_model, config, 0)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        train_groups(model, language_head, groups, config, out, Journal(out), seed)
    right: list[bool] = []
    for group in tested:
        scores = reward_scores(model, group.sequences, [group.prompt_length] * len(group.sequences)).tolist()
        right += [scores[chosen] > scores[rejected] for chosen, rejected in group.pairs]
    return mean(right)


def crew_figures(assessment: Assessment, bad: set[str]) -> dict[str, Any]:
    """Whom the figures raise concerns about, against who is bad."""
    found = {one.annotator_id: one for one in assessment.quality}
    doubted = {name for name, one in found.items() if one.concerns}
    return {
        "found": sorted(doubted, key=int),
        "bad": sorted(bad, key=int),
        "hits": len(doubted & bad),
        "doubted": len(doubted),
        "agreement": assessment.agreement.overall.share,
        "reliability": {name: one.reliability for name, one in sorted(found.items(), key=lambda item: int(item[0]))},
        "concerns": {name: one.concerns for name, one in found.items() if one.concerns},
    }


def main(
    artifacts: Path = Path(".rlhf/artifacts"),
    seed: Annotated[list[int], typer.Option(help="of the crew; can be repeated")] = [0, 1, 2, 3, 4],  # noqa: B006
    train: Annotated[list[str], typer.Option(help="a way to train the true reward model in, too")] = [],  # noqa: B006
    epochs: Annotated[float, typer.Option(help="of the true reward model")] = 3.0,
    words: Annotated[bool, typer.Option(help="train a logistic regression on words in every way")] = True,
    threads: int = 1,
) -> None:
    """Measure, and write `.bench/screening.json`."""
    there = towns(artifacts)
    if not there:
        raise SystemExit(f"{artifacts} has no responses of a town: run `rlhf run town`, or name another --artifacts")
    if strange := {*train} - {*WAYS}:
        raise SystemExit(f"--train {', '.join(strange)}: choose from {'; '.join(WAYS)}")
    torch.set_num_threads(threads)
    crews, accuracy, rewards = [], defaultdict(list), defaultdict(list)
    for number in tqdm(seed, desc="crews"):
        paths = there[number % len(there)]
        work = work_of(paths, number)
        said = work.judged(deal(list(work.tasks), work.crew, OVERLAP, number))
        crews.append(crew_figures(assess(said, work.tasks, {}, QualityOptions(), work.answers), work.bad))
        training, test = split(work, said)
        for way, rows in training.items():
            if words:
                accuracy[way].append(bag_of_words_accuracy(rows, test))
            if way in train:
                rewards[way].append(reward_accuracy(paths, rows, test, number, epochs))
        keep(
            {
                "seeds": seed,
                "epochs": epochs,
                "tested": len(test),
                "crews": crews,
                "words": accuracy,
                "reward_model": rewards,
            }
        )


def split(work: Work, said: list[Judged]) -> tuple[dict[str, list[Comparison]], list[Comparison]]:
    """Training comparisons in each way, and what two good annotators, who are not in them, say of the other prompts."""
    good = [place for place in range(1, len(work.crew) + 1) if str(place) not in work.bad]
    held = {good[(HELD_ANNOTATORS * work.seed + i) % len(good)] for i in range(HELD_ANNOTATORS)}
    prompts = sorted({task.prompt.id for uid, task in work.tasks.items() if uid not in work.answers})
    tested = set(prompts[:: round(1 / HELD_PROMPTS)])
    emails = [work.crew[place - 1].email for place in held]
    asked = {uid: emails for uid, task in work.tasks.items() if uid not in work.answers and task.prompt.id in tested}
    test, _ = comparisons(work.judged(asked), work.tasks)
    made = ways(work, [one for one in said if int(one.annotator_id) not in held])
    return {way: [row for row in rows if row.prompt.id not in tested] for way, rows in made.items()}, test


def keep(found: dict[str, Any]) -> None:
    """Write what there is so far and print it."""
    HOME.mkdir(exist_ok=True)
    (HOME / "screening.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    hits, doubted, bad = (
        sum(n) for n in zip(*((c["hits"], c["doubted"], len(c["bad"])) for c in found["crews"]), strict=True)
    )
    print(f"\n{len(found['crews'])} crews: precision {hits / max(1, doubted):.3f}, recall {hits / max(1, bad):.3f}")
    for model in ("words", "reward_model"):
        base = found[model].get("majority")
        for way, values in found[model].items():
            gains = [a - b for a, b in zip(values, base, strict=True)] if base and len(base) == len(values) else []
            error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            spread = f", over majority {mean(gains):+.4f} ± {error:.4f}" if len(gains) > 1 else ""
            print(f"{model:13} {way:24} {mean(values):.4f}{spread}")


if __name__ == "__main__":
    typer.run(main)
