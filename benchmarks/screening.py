"""Whether screening finds the bad annotators of a crew, and what weights are worth to a reward model.

    rlhf run town
    python -m benchmarks.screening --artifacts .rlhf/artifacts --seed 0 --seed 1 --seed 2 --seed 3 --seed 4

A crew of twelve, three of them bad (careless, side-biased, spamming), judges the responses of a town as the labelling
stage would have them do. It goes without a server: what an annotator says of a task does not depend on one. Two good
annotators and a fifth of the prompts are held out. Then the reward proxy (logistic regression on words) is trained on
what the others said of the other prompts, in each of several ways, and asked what the held-out annotators said. With
`--train` the town's true reward model is, too. Seeds draw crews; the towns are those found, in turn.
"""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from tqdm import tqdm

from alignment.comparisons import aggregated
from alignment.journal import Journal
from alignment.records import Comparison, ResponseSet, read_records, write_records
from alignment.reward import train_reward_model
from alignment.statistics import bag_of_words_accuracy
from alignment.town import Judge
from flows.labeling import town_answers
from flows.recipe import load_recipe
from labeling.annotations import Judged, parse_annotation
from labeling.assessment import Assessment, assess
from labeling.config import CrewConfig, QualityOptions, Screening
from labeling.gold import gold_tasks
from labeling.simulate import deal, fitting_temperature, make_crew, utilities, work_on
from labeling.tasks import Task, build_tasks

HOME = Path(__file__).parent.parent / ".bench"
CREW: dict[str, Any] = {"annotators": 12, "careless": 1, "side_biased": 1, "spamming": 1}
RANKED, COMPARED, OVERLAP, GOLD_SHARE, HELD_ANNOTATORS, HELD_PROMPTS = 400, 100, 3, 0.05, 2, 0.2
WAYS = ("majority", "each, no weights", "each, weights", "soft, no weights", "soft, weights", "screened majority",
        "screened, weights", "good annotators alone")  # fmt: skip


def towns(artifacts: Path) -> list[dict[str, Path]]:
    """What the runs under `artifacts` left: responses, and the town, SFT and demonstrations behind them."""
    by_key = {}
    for place in sorted(artifacts.glob("*/provenance.json")):
        told = json.loads(place.read_text(encoding="utf-8"))
        by_key[told["key"]] = (place.parent, told)

    def behind(told: dict[str, Any], name: str) -> tuple[Path, dict[str, Any]]:
        return by_key[told["inputs"][name]["key"]]

    found = []
    for place, told in by_key.values():
        if told["stage"] == "responses":
            sft, made = behind(told, "model")
            town, _ = behind(behind(told, "prompts")[1], "town")
            demonstrations, _ = behind(made, "demonstrations")
            found.append({"responses": place, "town": town, "sft": sft, "demonstrations": demonstrations})
    return sorted(found, key=lambda paths: json.loads((paths["town"] / "provenance.json").read_text())["seed"])


def judged(paths: dict[str, Path], seed: int) -> tuple[list[Judged], dict[str, Task], dict[str, Any], set[str]]:
    """All judgements of a crew, the tasks, the answers of gold tasks, and the e-mails of the bad annotators."""
    sets, _ = read_records(paths["responses"] / "responses.jsonl", ResponseSet)
    gold_judge = Judge.load(paths["town"] / "facts.json")
    prompts = {one.prompt.id: one.prompt for one in sets}
    verdicts: dict[tuple[str, str], dict[str, float]] = {}

    def judge(prompt_id: str, text: str) -> dict[str, float]:
        if (prompt_id, text) not in verdicts:
            verdict = gold_judge(prompts[prompt_id], text)
            verdicts[prompt_id, text] = {name: getattr(verdict, name) for name in ("helpful", "truthful", "harmless")}
        return verdicts[prompt_id, text]

    tasks = build_tasks("ranking", sets[:RANKED], seed)[0] + build_tasks(
        "pairwise", sets[RANKED : RANKED + COMPARED], seed
    )[0]
    counts = {"ranking": round(GOLD_SHARE * RANKED), "pairwise": round(GOLD_SHARE * COMPARED)}
    known = town_answers(sets[RANKED + COMPARED :], gold_judge)
    gold = gold_tasks(known, counts, {task.uid for task in tasks}, seed)  # type: ignore[arg-type]
    every = {task.uid: task for task in [*tasks, *gold.tasks["ranking"], *gold.tasks["pairwise"]]}
    config = CrewConfig(seed=seed, **CREW)
    crew = make_crew(config)
    good = [one for one in crew if one.habit == "careful"]
    scored = [[utilities(one, task.data, task.prompt.id, judge) for one in good] for task in tasks]
    heat = fitting_temperature(good, scored, config.agreement)
    number = {one.email: place for place, one in enumerate(crew, start=1)}
    said: list[Judged] = []
    for uid, emails in deal(list(every), crew, OVERLAP, seed).items():
        for email in emails:
            one, task = crew[number[email] - 1], every[uid]
            result, seconds = work_on(one, task.data, task.prompt.id, judge, heat, seed)
            raw = {"id": len(said) + 1, "completed_by": number[email], "created_at": "", "lead_time": seconds,
                   "result": result}  # fmt: skip
            said.append(parse_annotation(raw, task))
    bad = {str(number[one.email]) for one in crew if one.habit != "careful"}
    return said, every, dict(gold.answers), bad


def ways(said: list[Judged], tasks: dict[str, Task], answers: dict[str, Any], held: set[str], bad: set[str]) -> dict[
    str, list[Comparison]
]:
    """The training comparisons that each way makes of what was said by annotators who are not held out."""
    known = [one for one in said if one.annotator_id not in held]
    everybody = assess(known, tasks, {}, QualityOptions(), answers)
    screened = assess(known, tasks, {}, QualityOptions(screening=Screening(apply=True)), answers)
    rows, kept = everybody.comparisons, screened.comparisons
    plain, sound = (
        [row.model_copy(update={"weight": 1.0}) for row in some] for some in (rows, kept)
    )
    made = (
        aggregated(plain, "majority"), plain, rows, aggregated(plain, "soft"), aggregated(rows, "soft"),
        aggregated(sound, "majority"), kept, [row for row in plain if row.annotator_id not in bad],
    )  # fmt: skip
    return {name: [row for row in some if row.weight > 0] for name, some in zip(WAYS, made, strict=True)}


def reward_accuracy(paths: dict[str, Path], train: list[Comparison], test: list[Comparison], seed: int) -> float:
    """The held-out accuracy of the town's reward model after training on `train`."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        for name, rows in (("train", train), ("heldout_prompts", test), ("heldout_annotators", [])):
            write_records(out / f"{name}.jsonl", rows)
        (out / "made").mkdir()
        figures = train_reward_model(
            load_recipe("town").reward, out / "made", Journal(out / "made"), seed=seed, sft=paths["sft"],
            comparisons=out, demonstrations=paths["demonstrations"],
        )  # fmt: skip
    return figures["accuracy_heldout_prompts"]


def crew_figures(assessment: Assessment, bad: set[str]) -> dict[str, Any]:
    """Whom the figures raise concerns about, against who is bad."""
    found = {one.annotator_id: one for one in assessment.quality}
    doubted = {name for name, one in found.items() if one.concerns}
    return {
        "found": sorted(doubted, key=int), "bad": sorted(bad, key=int), "hits": len(doubted & bad),
        "doubted": len(doubted), "agreement": assessment.agreement.overall.share,
        "reliability": {name: one.reliability for name, one in sorted(found.items(), key=lambda item: int(item[0]))},
        "concerns": {name: one.concerns for name, one in found.items() if one.concerns},
    }  # fmt: skip


def main(
    artifacts: Path = Path(".rlhf/artifacts"),
    seed: Annotated[list[int], typer.Option(help="of the crew; can be repeated")] = [0, 1, 2, 3, 4],  # noqa: B006
    train: Annotated[list[str], typer.Option(help="ways to train the true reward model on, too")] = [],  # noqa: B006
) -> None:
    """Measure, and write `.bench/screening.json`."""
    there = towns(artifacts)
    if not there:
        raise SystemExit(f"{artifacts} has no responses of a town: run `rlhf run town`, or name another --artifacts")
    crews, accuracy, rewards = [], defaultdict(list), defaultdict(list)
    for number in tqdm(seed, desc="crews"):
        paths = there[number % len(there)]
        said, tasks, answers, bad = judged(paths, number)
        crews.append(crew_figures(assess(said, tasks, {}, QualityOptions(), answers), bad))
        held = {str(1 + (2 * number + i) % 9) for i in range(HELD_ANNOTATORS)}  # two of the nine good ones
        prompts = sorted({task.prompt.id for uid, task in tasks.items() if uid not in answers})
        tested = set(prompts[:: round(1 / HELD_PROMPTS)])
        rows = assess([one for one in said if one.annotator_id in held], tasks, {}, QualityOptions(), answers)
        test = [row.model_copy(update={"weight": 1.0}) for row in rows.comparisons if row.prompt.id in tested]
        for way, training in ways(said, tasks, answers, held, bad).items():
            training = [row for row in training if row.prompt.id not in tested]
            accuracy[way].append(bag_of_words_accuracy(training, test))
            if way in train:
                rewards[way].append(reward_accuracy(paths, training, test, number))
        keep({"seeds": seed, "crews": crews, "words": accuracy, "reward_model": rewards})


def keep(found: dict[str, Any]) -> None:
    """Write what there is so far and print it."""
    HOME.mkdir(exist_ok=True)
    (HOME / "screening.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    hits, doubted, bad = (sum(n) for n in zip(*((c["hits"], c["doubted"], len(c["bad"])) for c in found["crews"]),
                                              strict=True))  # fmt: skip
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
