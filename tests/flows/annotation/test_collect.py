"""The labelling stage against a real server: simulated annotators with bad habits, gold tasks, and adjudication."""

import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.config.stages import ComparisonsConfig, TokenizerConfig, TownConfig
from alignment.criteria import CRITERION_NAMES
from alignment.data.comparisons import build_comparisons
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Comparison, Prompt, RecordT, Rejected, Response, ResponseSet, read_records, write_records
from alignment.town import build_town
from alignment.town.texts import write_answer
from alignment.town.world import World
from flows.annotation.accounts import accounts_file, remember
from flows.annotation.collect import collect, known_answers
from flows.annotation.label_studio import annotation_store
from flows.annotation.planned import plans
from flows.releases.trace import trace
from labeling.collection import (
    ADJUDICATION,
    COLLECTION_FILE,
    Collection,
    pull_collection,
    read_collection,
    simulate_collection,
)
from labeling.config import (
    CrewConfig,
    GoldTasks,
    LabelingConfig,
    PairwiseTasks,
    QualityOptions,
    RankingTasks,
    Screening,
)
from labeling.names import collection_of
from labeling.quality.screening import SENIOR, Dispute, SetAside
from labeling.reports.report import reports
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account
from labeling.simulation.crew import pairwise_result, ranking_result, responses_of
from labeling.store.sync import sync
from labeling.tasks.tasks import distinct
from tests.flows.tiny import run_stage
from tests.labeling.helpers import TOKEN, response_set

pytestmark = pytest.mark.server
STARS = [(3, 3, 3)] * 2


@pytest.fixture(autouse=True)
def stack(server_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label Studio as the stage finds it."""
    monkeypatch.setenv("LABEL_STUDIO_URL", server_url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)


def rows(out: Path, name: str, kind: type[RecordT]) -> list[RecordT]:
    found, bad = read_records(out / f"{name}.jsonl", kind)
    assert not bad
    return found


# --- a crew ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small town, and in `responses.jsonl` four answers of mixed worth to each prompt."""
    out = tmp_path_factory.mktemp("town")
    build_town(TownConfig(people=14, documents=10, demonstrations=10, prompts=90, heldout_prompts=10), 0, out)
    world, sets = World.load(out / "facts.json"), []
    for prompt in rows(out, "prompts", Prompt):
        rng = random.Random(prompt.id)
        texts = sorted({write_answer(world, prompt, rng) for _ in range(40)})
        if len(texts) >= 4:
            answers = tuple(Response(id=f"{prompt.id}-{i}", text=text) for i, text in enumerate(rng.sample(texts, 4)))
            if len(distinct(answers)) == 4:
                sets.append(ResponseSet(prompt=prompt, responses=answers))
    write_records(out / "responses.jsonl", sets)
    return out


def crew_config(**screening: Any) -> LabelingConfig:
    return LabelingConfig(
        title="crew",
        rankings=RankingTasks(prompts=20, overlap=3),
        pairwise=PairwiseTasks(prompts=5, overlap=3),
        crew=CrewConfig(annotators=5, side_biased=1, spamming=1),
        quality=QualityOptions(gold=GoldTasks(share=0.2), screening=Screening(**screening), dispute_ranking=0.5),
    )


def test_a_crew_with_bad_annotators_from_tasks_to_files(owner: LabelStudio, town: Path, tmp_path: Path) -> None:
    out = tmp_path / "screened"
    figures = collect(crew_config(apply=True), out, Journal(out), responses=town, town=town)
    opened, crew = read_collection(out), json.loads((out / "annotators.json").read_text())
    assert (figures["judgements"], figures["gold_tasks"], figures["annotators"]) == (30 * 3, 5, 5)
    *good, biased, spammer = sorted((one["annotator_id"] for one in crew), key=int)
    assert {one["annotator_id"] for one in crew if one["set_aside"]} == {biased, spammer}
    reasons = {one["annotator_id"]: " ".join(one["concerns"]) for one in crew}
    assert "with the order shown" in reasons[biased] and "of rankings as shown" in reasons[spammer]
    assert not any(reasons[one] for one in good)
    assert all(one["weight"] == 0.0 if one["set_aside"] else one["weight"] > 0.5 for one in crew)

    kept, aside = rows(out, "comparisons", Comparison), rows(out, "set_aside", SetAside)
    gold, disputed = rows(out, "gold", Comparison), rows(out, "disputed", Dispute)
    assert {row.annotator_id for row in kept} == set(good)
    assert {row.comparison.annotator_id for row in aside} == {biased, spammer} and all(row.reasons for row in aside)
    asked = {opened.tasks[uid].prompt.id for uid in opened.answers}
    assert {row.prompt.id for row in gold} == asked and not asked & {row.prompt.id for row in kept}
    everything = [*kept, *(row.comparison for row in aside), *gold]
    assert len({row.id for row in everything}) == len(everything) == (20 + 4) * 3 * 6 + (5 + 1) * 3
    assert disputed and {one for row in disputed for one in row.annotator_ids} <= set(good)
    assert figures["disputed"] == len(disputed) and figures["set_aside"] == len(aside)
    for name in ("annotators", "habits"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000

    back = tmp_path / "back"
    again = collect(
        crew_config(apply=True, keep=(biased,), exclude=(good[0],)), back, Journal(back), responses=town, town=town
    )
    assert again["judgements"] == figures["judgements"]  # the same collection: nobody was asked again
    assert {row.annotator_id for row in rows(back, "comparisons", Comparison)} == {*good[1:], biased}
    assert {row.comparison.annotator_id for row in rows(back, "set_aside", SetAside)} == {good[0], spammer}

    plain = pull_collection(owner, opened)
    assert not plain.set_aside
    assert {row.id for row in plain.comparisons + plain.ties + plain.gold} == {row.id for row in everything}


# --- people ----------------------------------------------------------------------------------------------------


def known(number: int) -> list[Comparison]:
    one = response_set(number)
    return [
        Comparison(id=f"known-{number}-{i}", prompt=one.prompt, chosen=one.responses[0], rejected=worse, strength=2)
        for i, worse in enumerate(one.responses[1:])
    ]


def write_answers(path: Path) -> Path:
    """Answers to three prompts, between a line that is no JSON, one without a side and a tie."""
    good = [row.model_dump_json() for number in (20, 21, 22) for row in known(number)]
    tie = known(23)[0].model_copy(update={"strength": 0})
    half = {key: value for key, value in known(23)[0].model_dump().items() if key != "rejected"}
    path.write_text("\n".join(["{not json", *good, json.dumps(half), tie.model_dump_json()]) + "\n")
    return path


def people_config(gold: Path, **options: Any) -> LabelingConfig:
    return LabelingConfig(
        annotators="people",
        title="people",
        rankings=RankingTasks(prompts=4),
        pairwise=PairwiseTasks(prompts=4),
        quality=QualityOptions(gold=GoldTasks(share=0.5, path=str(gold)), adjudicate=True),
        poll_seconds=0.2,
        minimum_share=1.0,
        deadline_hours=0.2,
        **options,
    )


@contextmanager
def at_work(owner: LabelStudio, title: str) -> Iterator[dict[str, str]]:
    """Anna and Bert judge what there is, of opposite minds about odd towns; Greta judges what is put before a senior.

    Yields their annotator ids by name.
    """
    accounts = {
        name: ensure_account(owner, f"{name}@rlhf.local", f"password-of-{name}", name)
        for name in ("anna", "bert", "greta2")
    }
    remember(owner, [account.id for account in accounts.values()])  # who only signed up does not count
    done: set[tuple[int, str]] = set()
    over = threading.Event()

    def judge(name: str, row: Mapping[str, Any]) -> None:
        shown = [one for one, _ in sorted(responses_of(row["data"]), key=lambda pair: pair[1])]
        odd = int(row["data"]["prompt"].rstrip("?").split()[-1]) % 2 == 1
        turned = name == "bert" and odd
        if "responses" in row["data"]:
            result = ranking_result(shown[::-1] if turned else shown)
        else:
            better_is_a = (shown[0] == row["data"]["a_id"]) != turned
            result = pairwise_result(3.0 if better_is_a else -3.0, STARS)
        with LabelStudio(owner.url, accounts[name].token.get_secret_value()) as client:
            client.annotate(row["id"], result, 5.0)

    def work() -> None:
        while not over.wait(0.1):
            for project in owner.projects():
                if project["title"].startswith(title):
                    names = ["greta2"] if project["title"].startswith(f"{title} final") else ["anna", "bert"]
                    for row in owner.tasks(project["id"], "id", "data"):
                        for name in names:
                            if (row["id"], name) not in done:
                                judge(name, row)
                                done.add((row["id"], name))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield {name: str(account.id) for name, account in accounts.items()}
    finally:
        over.set()
        worker.join(30)


def test_people_gold_answers_from_a_file_and_a_senior(owner: LabelStudio, home: Path) -> None:
    responses = home / "responses"
    write_records(responses / "responses.jsonl", [response_set(number) for number in range(8)])
    config = people_config(write_answers(home / "answers.jsonl"))

    def stage(out: Path, journal: Journal) -> Mapping[str, float]:
        return collect(config, out, journal, responses=responses, town=None)

    with at_work(owner, "people") as ids:
        labelled = run_stage("labeling", stage, config=TokenizerConfig())
    out = labelled.path
    senior, others = ids["greta2"], {ids["anna"], ids["bert"]}
    kept = rows(out, "comparisons", Comparison)
    disputed = {f"prompt_{number}" for number in (1, 3, 5, 7)}
    assert {row.prompt.id for row in kept if row.annotator_id == senior} == disputed
    assert {row.annotator_id for row in kept if row.prompt.id not in disputed} == others
    assert {row.prompt.id for row in kept} == {f"prompt_{number}" for number in range(8)}
    aside = rows(out, "set_aside", SetAside)
    assert {row.reasons for row in aside} == {(SENIOR,)} and len(aside) == 2 * (2 * 6 + 2)
    assert {row.comparison.prompt.id for row in aside} == disputed

    assert {row.prompt.id for row in rows(out, "gold", Comparison)} <= {f"prompt_{number}" for number in (20, 21, 22)}
    quarantined = rows(out, "quarantine", Rejected)
    assert [row.line for row in quarantined[:2]] == [1, 11]
    reasons = [row.reason.split(":")[0] for row in quarantined]
    assert reasons == ["not a line of UTF-8 JSON", "rejected", "a tie is no answer"]

    def split(out: Path, journal: Journal) -> Mapping[str, float]:
        return build_comparisons(
            ComparisonsConfig(heldout_share=0.4), out, journal, seed=0, labelled=labelled.file("comparisons.jsonl")
        )

    run_stage("comparisons", split, config=ComparisonsConfig(), inputs={"labelled": labelled})
    first, second = read_collection(out), read_collection(out / ADJUDICATION)
    for who, opened in ((senior, second), (ids["anna"], first)):
        row = next(row for row in kept if row.annotator_id == who)
        found, batch = trace(row.id), next(one for one in opened.batches if row.task_uid in one.task_ids)
        assert found["judgement"]["annotation_id"] == row.annotation_id
        place = f"projects/{batch.project.id}/data?task={batch.task_ids[row.task_uid]}"
        assert found["task"]["task_url"].endswith(place)
        assert owner.get(f"/api/annotations/{row.annotation_id}/")["completed_by"] == int(who)


# --- several collections -----------------------------------------------------------------------------------------


def pairs_config(annotators: str, overlap: int = 2, **options: Any) -> LabelingConfig:
    """Three pairs; a run that asks people ends at once, with what is there."""
    return LabelingConfig.model_validate(
        {
            "annotators": annotators,
            "rankings": {"prompts": 0},
            "pairwise": {"prompts": 3, "overlap": overlap},
            "crew": {"annotators": 3},
            "deadline_hours": 1e-6,
            **options,
        }
    )


def judge_pairs(owner: LabelStudio, number: int, count: int) -> None:
    """Paula judges the first tasks of a project."""
    paula = ensure_account(owner, "paula@rlhf.local", "password-of-paula", "Paula")
    remember(owner, [paula.id])
    with LabelStudio(owner.url, paula.token.get_secret_value()) as client:
        for row in owner.tasks(number, "id")[:count]:
            client.annotate(row["id"], pairwise_result(3.0, STARS), 5.0)


def numbers_of(owner: LabelStudio, recipe: str) -> dict[str, int]:
    """The projects of a recipe on the server, by title."""
    return {str(raw["title"]): int(raw["id"]) for raw in owner.projects() if raw["title"].startswith(recipe)}


def test_a_demo_people_a_second_seed_and_another_overlap_are_four_collections(
    owner: LabelStudio, town: Path, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_records(tmp_path / "seed-1" / "responses.jsonl", rows(town, "responses", ResponseSet)[10:13])

    def run(name: str, config: LabelingConfig, responses: Path = town, seed: int = 0) -> tuple[float, list[str]]:
        """The judgements of a run, and what it said; a run in which nobody judged ends with an error."""
        caplog.clear()
        out = home / "artifacts" / f"labeling-{name}.partial"
        options: dict[str, Any] = {"responses": responses, "town": town, "recipe": "village", "seed": seed}
        try:
            with caplog.at_level("INFO", logger="flows.annotation.collect"):
                return collect(config, out, Journal(out), **options)["judgements"], caplog.messages
        except DataError as error:
            assert "nothing was judged" in str(error)
            return 0.0, caplog.messages

    demo, people, threefold = pairs_config("simulated"), pairs_config("people"), pairs_config("people", overlap=3)
    count, said = run("demo", demo)
    assert count == 6 and said[0] == "village pairwise (crew): nothing is judged yet, 6 judgements are asked for"
    count, said = run("people", people)  # the crew's judgements are not theirs
    assert count == 0 and said[:2] == [
        "village pairwise: nothing is judged yet, 6 judgements are asked for",
        "6 of 6 in village pairwise (crew), by 3 simulated annotators, are another collection",
    ]
    projects = numbers_of(owner, "village")
    judge_pairs(owner, projects["village pairwise"], 2)
    judge_pairs(owner, projects["village pairwise (crew)"], 1)  # nor is hers the crew's
    count, said = run("people", people)
    assert count == 2 and "village pairwise: 2 of 6 were judged by 1 person, last on 20" in said[0]
    assert run("seed-1", people, tmp_path / "seed-1", seed=1)[0] == 0
    judge_pairs(owner, numbers_of(owner, "village")["village pairwise (seed 1)"], 1)
    assert run("seed-1", people, tmp_path / "seed-1", seed=1)[0] == 1
    count, said = run("threefold", threefold)
    assert count == 0 and "2 of 6 in village pairwise, by 1 person, are another collection" in said
    assert run("demo", demo)[0] == 6  # as it was

    opened = numbers_of(owner, "village")
    with closing(annotation_store()) as store:
        found = reports(store, [*opened.values()], plans=plans())
    statuses = [report.status for report in found]
    assert {status.title: (status.done, status.needed, status.quarantined) for status in statuses} == {
        "village pairwise (crew)": (6, 6, 1),
        "village pairwise": (2, 6, 0),
        "village pairwise (seed 1)": (1, 6, 0),
        "village pairwise 2": (0, 9, 0),
    }
    overlaps = {title: owner.project(number)["maximum_annotations"] for title, number in opened.items()}
    assert sorted(overlaps.values()) == [2, 2, 2, 3] and overlaps["village pairwise 2"] == 3


@pytest.mark.long
@pytest.mark.parametrize("with_crew", [False, True])
def test_people_go_on_in_a_project_of_an_earlier_version_unless_the_crew_judged_there(
    owner: LabelStudio, town: Path, home: Path, with_crew: bool
) -> None:
    recipe, out = f"earlier{with_crew:d}", home / "artifacts" / "labeling-0.partial"
    config = pairs_config("people", title=recipe)

    def run() -> Mapping[str, float]:
        return collect(config, out, Journal(out), responses=town, town=None, recipe=recipe)

    with pytest.raises(DataError, match="nothing was judged"):
        run()
    (batch,) = read_collection(out).batches
    number, title = batch.project.id, f"{recipe} pairwise [0a1b2c3d]"
    owner.patch(f"/api/projects/{number}/", {"title": title, "description": "Made by rlhf-flows; screen 0a1b2c3d."})
    project = batch.project.model_copy(update={"key": "", "origin": None, "title": title})
    collection = Collection(batches=(batch.model_copy(update={"project": project}),))
    (out / COLLECTION_FILE).write_text(collection.model_dump_json())
    if with_crew:
        crew = simulate_collection(
            owner, collection, CrewConfig(annotators=3), lambda *_: dict.fromkeys(CRITERION_NAMES, 1.0)
        )
        accounts = {"known": {owner.url: [*map(int, crew.annotators)]}}  # as that version wrote them
        accounts_file().write_text(json.dumps(accounts))
    else:
        judge_pairs(owner, number, 1)
    with closing(annotation_store()) as store:
        sync(owner, store, [number])
    if with_crew:
        with pytest.raises(DataError, match="nothing was judged"):
            run()
        assert read_collection(out).batches[0].project.id != number
    else:
        assert run()["judgements"] == 1
        assert read_collection(out).batches[0].project.id == number
        assert collection_of(owner.project(number)) == batch.project.key


def test_a_file_without_any_answer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "?"}\n[1]\n')
    with pytest.raises(DataError, match=r"no comparisons; of the 2 rows the first has: id: Field required"):
        known_answers(people_config(path), [], None)
