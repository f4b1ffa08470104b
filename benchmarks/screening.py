"""Whether screening detects the bad annotators of a crew, and what weights are worth to a reward model.

    rlhf run town
    python -m benchmarks.screening --artifacts .rlhf/artifacts --train majority --train "majority, weights"

A crew of twelve, three of them bad (careless, side-biased, spamming), judges the responses of a town as the labelling
stage would have them do, but without a server, on which simulated judgements do not depend. Two good annotators and a
fifth of the prompts are held out. Then a logistic regression on words is trained on the others' judgements of the other
prompts, aggregated in each of several ways, and tested on the held-out annotators' judgements of the held-out prompts;
with `--train`, so is the town's reward model itself. Seeds draw crews; the towns under `artifacts` are used in turn.
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
from alignment.models.chat import load_chat
from alignment.models.encoding import encode_comparison
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
    """The artifacts of earlier runs: responses, and the town and SFT that they were made from."""
    by_key = {}
    for path in sorted(artifacts.glob("*/provenance.json")):
        provenance = json.loads(path.read_text(encoding="utf-8"))
        by_key[provenance["key"]] = (path.parent, provenance)

    def source(provenance: dict[str, Any], name: str) -> tuple[Path, dict[str, Any]]:
        return by_key[provenance["inputs"][name]["key"]]

    directories = []
    for directory, provenance in by_key.values():
        if provenance["stage"] == "responses":
            sft, _ = source(provenance, "model")
            town, _ = source(source(provenance, "prompts")[1], "town")
            directories.append({"responses": directory, "town": town, "sft": sft})
    return sorted(directories, key=lambda paths: json.loads((paths["town"] / "provenance.json").read_text())["seed"])


@dataclass(frozen=True)
class Work:
    """A crew with its tasks, some of which are gold; annotators are numbered in the order of the crew, from 1."""

    crew: list[Annotator]
    tasks: dict[str, Task]
    answers: Answers
    judge: Criteria
    heat: float
    seed: int

    @property
    def bad(self) -> set[str]:
        """The annotators with a bad habit."""
        return {str(number) for number, annotator in enumerate(self.crew, start=1) if annotator.habit != "careful"}

    def judged(self, dealt: Mapping[str, Iterable[str]]) -> list[Judged]:
        """The judgements of the tasks assigned to each annotator (e-mails by uid)."""
        judgements: list[Judged] = []
        for uid, emails in dealt.items():
            task, assigned = self.tasks[uid], set(emails)
            for number, annotator in enumerate(self.crew, start=1):
                if annotator.email in assigned:
                    result, seconds = work_on(annotator, task.data, task.prompt.id, self.judge, self.heat, self.seed)
                    raw = {"id": len(judgements) + 1, "completed_by": number, "lead_time": seconds, "result": result}
                    judgements.append(parse_annotation(raw, task))
        return judgements


def work_of(paths: dict[str, Path], seed: int) -> Work:
    """The tasks of a town, gold ones among them, and a crew that agrees as the town's does."""
    sets, _ = read_records(paths["responses"] / "responses.jsonl", ResponseSet)
    gold_judge = Judge.load(paths["town"] / "facts.json")
    prompts = {row.prompt.id: row.prompt for row in sets}

    @cache
    def judge(prompt_id: str, text: str) -> Mapping[str, float]:
        return gold_judge(prompts[prompt_id], text).scores

    chosen = {"ranking": sets[:RANKED], "pairwise": sets[RANKED : RANKED + COMPARED]}
    tasks = [task for kind, rows in chosen.items() for task in build_tasks(kind, rows, seed)[0]]  # type: ignore[arg-type]
    counts: dict[Kind, int] = {"ranking": round(GOLD_SHARE * RANKED), "pairwise": round(GOLD_SHARE * COMPARED)}
    known = town_answers(sets[RANKED + COMPARED :], gold_judge)
    gold = gold_tasks(known, counts, {task.uid for task in tasks}, seed, {row.prompt.id: row.responses for row in sets})
    config = CrewConfig(seed=seed, **CREW)
    crew = make_crew(config)
    good = [annotator for annotator in crew if annotator.habit == "careful"]
    scored = [[utilities(annotator, task.data, task.prompt.id, judge) for annotator in good] for task in tasks]
    every = {task.uid: task for task in [*tasks, *gold.tasks["ranking"], *gold.tasks["pairwise"]]}
    return Work(crew, every, gold.answers, judge, fitting_temperature(good, scored, config.agreement), seed)


def ways(work: Work, judgements: list[Judged]) -> dict[str, list[Comparison]]:
    """The training comparisons of each way to aggregate the judgements."""
    everybody = assess(judgements, work.tasks, {}, QualityOptions(), work.answers)
    screened = assess(judgements, work.tasks, {}, QualityOptions(screening=Screening(apply=True)), work.answers)
    rows, kept = everybody.comparisons, screened.comparisons
    plain, sound = ([row.model_copy(update={"weight": 1.0}) for row in some] for some in (rows, kept))
    good = [row for row in plain if row.annotator_id not in work.bad]
    results = (
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
    return {name: [row for row in some if row.weight > 0] for name, some in zip(WAYS, results, strict=True)}


def reward_accuracy(
    paths: dict[str, Path], train: list[Comparison], test: list[Comparison], seed: int, epochs: float
) -> float:
    """The share of `test` that the town's reward model has in order after training on `train`."""
    config = load_recipe("town", [f"reward.epochs={epochs}"]).reward
    chat, language_model = load_chat(paths["sft"] / "model"), load_causal_model(paths["sft"] / "model")
    groups, tested = (
        group_by_prompt([(row, encode_comparison(chat, row, config.max_length_tokens)) for row in rows])
        for rows in (train, test)
    )
    torch.manual_seed(seed)
    model, language_head = untrained(language_model, config, 0)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        train_groups(model, language_head, groups, config, out, Journal(out), seed)
    right: list[bool] = []
    for group in tested:
        scores = reward_scores(model, group.sequences, [group.prompt_length] * len(group.sequences)).tolist()
        right += [scores[chosen] > scores[rejected] for chosen, rejected in group.pairs]
    return mean(right)


def crew_figures(assessment: Assessment, bad: set[str]) -> dict[str, Any]:
    """The annotators with concerns, compared with the bad ones."""
    quality = {row.annotator_id: row for row in assessment.quality}
    doubted = {name for name, row in quality.items() if row.concerns}
    return {
        "found": sorted(doubted, key=int),
        "bad": sorted(bad, key=int),
        "hits": len(doubted & bad),
        "doubted": len(doubted),
        "agreement": assessment.agreement.overall.share,
        "reliability": {name: row.reliability for name, row in sorted(quality.items(), key=lambda item: int(item[0]))},
        "concerns": {name: row.concerns for name, row in quality.items() if row.concerns},
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
    available = towns(artifacts)
    if not available:
        raise SystemExit(f"{artifacts} has no responses of a town: run `rlhf run town`, or name another --artifacts")
    if strange := {*train} - {*WAYS}:
        raise SystemExit(f"--train {', '.join(strange)}: choose from {'; '.join(WAYS)}")
    torch.set_num_threads(threads)
    crews, accuracy, rewards = [], defaultdict(list), defaultdict(list)
    for number in tqdm(seed, desc="crews"):
        paths = available[number % len(available)]
        work = work_of(paths, number)
        judgements = work.judged(deal(list(work.tasks), work.crew, OVERLAP, number))
        crews.append(crew_figures(assess(judgements, work.tasks, {}, QualityOptions(), work.answers), work.bad))
        training, test = split(work, judgements)
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


def split(work: Work, judgements: list[Judged]) -> tuple[dict[str, list[Comparison]], list[Comparison]]:
    """Training comparisons of each way, and the judgements of the held-out prompts by two held-out good annotators."""
    good = [number for number in range(1, len(work.crew) + 1) if str(number) not in work.bad]
    held = {good[(HELD_ANNOTATORS * work.seed + i) % len(good)] for i in range(HELD_ANNOTATORS)}
    prompts = sorted({task.prompt.id for uid, task in work.tasks.items() if uid not in work.answers})
    tested = set(prompts[:: round(1 / HELD_PROMPTS)])
    emails = [work.crew[number - 1].email for number in held]
    assigned = {uid: emails for uid, task in work.tasks.items() if uid not in work.answers and task.prompt.id in tested}
    test, _ = comparisons(work.judged(assigned), work.tasks)
    training = ways(work, [row for row in judgements if int(row.annotator_id) not in held])
    return {way: [row for row in rows if row.prompt.id not in tested] for way, rows in training.items()}, test


def keep(results: dict[str, Any]) -> None:
    """Write and print the results so far."""
    HOME.mkdir(exist_ok=True)
    (HOME / "screening.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    hits, doubted, bad = (
        sum(n) for n in zip(*((c["hits"], c["doubted"], len(c["bad"])) for c in results["crews"]), strict=True)
    )
    print(f"\n{len(results['crews'])} crews: precision {hits / max(1, doubted):.3f}, recall {hits / max(1, bad):.3f}")
    for model in ("words", "reward_model"):
        base = results[model].get("majority")
        for way, values in results[model].items():
            gains = [a - b for a, b in zip(values, base, strict=True)] if base and len(base) == len(values) else []
            error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            spread = f", over majority {mean(gains):+.4f} ± {error:.4f}" if len(gains) > 1 else ""
            print(f"{model:13} {way:24} {mean(values):.4f}{spread}")


if __name__ == "__main__":
    typer.run(main)
