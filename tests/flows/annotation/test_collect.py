"""The labelling stage against a real server: simulated annotators with bad habits, gold tasks, and adjudication."""

import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.config.stages import ComparisonsConfig, TokenizerConfig, TownConfig
from alignment.data.comparisons import build_comparisons
from alignment.errors import DataError
from alignment.journal import Journal
from alignment.records import Comparison, Prompt, RecordT, Rejected, Response, ResponseSet, read_records, write_records
from alignment.town import build_town
from alignment.town.texts import write_answer
from alignment.town.world import World
from flows.annotation.accounts import remember
from flows.annotation.collect import collect, known_answers
from flows.releases.trace import trace
from labeling.collection import ADJUDICATION, pull_collection, read_collection
from labeling.config import (
    CrewConfig,
    GoldTasks,
    LabelingConfig,
    PairwiseTasks,
    QualityOptions,
    RankingTasks,
    Screening,
)
from labeling.quality.screening import SENIOR, Dispute, SetAside
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account
from labeling.simulation.crew import pairwise_result, ranking_result, responses_of
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


def test_a_file_without_any_answer_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question": "?"}\n[1]\n')
    with pytest.raises(DataError, match=r"no comparisons; of the 2 rows the first has: id: Field required"):
        known_answers(people_config(path), [], None)
