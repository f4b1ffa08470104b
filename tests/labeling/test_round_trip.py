"""Round trip through a real server: accounts, projects, tasks, simulated annotators, comparisons."""

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from alignment.records import Comparison
from labeling.collection import (
    Collection,
    Progress,
    open_adjudication,
    progress,
    pull_collection,
    read_collection,
    simulate_collection,
    sync_collection,
)
from labeling.config import CrewConfig, GoldTasks, LabelingConfig, PairwiseTasks, QualityOptions, RankingTasks
from labeling.errors import BadCredentials
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen
from labeling.server.client import LabelStudio
from labeling.server.process import wait_until_ready
from labeling.server.users import ensure_account
from labeling.simulation.crew import ranking_result
from labeling.store.store import Store
from labeling.tasks.projects import open_project
from labeling.tasks.tasks import build_tasks
from labeling.tasks.upload import push, stored
from tests.labeling.helpers import TOKEN, judge, open_sets, response_set

pytestmark = pytest.mark.server
SETS = [response_set(number, split="heldout" if number % 5 == 0 else "train") for number in range(30)]


def config(title: str, overlap: int = 2) -> LabelingConfig:
    return LabelingConfig(
        title=title,
        rankings=RankingTasks(prompts=20, overlap=overlap),
        pairwise=PairwiseTasks(prompts=10, overlap=overlap),
        crew=CrewConfig(agreement=0.73),
    )


@pytest.fixture(scope="module")
def collection(owner: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A collection that the crew has finished."""
    out = tmp_path_factory.mktemp("collection")
    opened = open_sets(owner, config("round trip"), SETS, out)
    assert read_collection(out) == opened
    assert judged(owner, opened).by_kind == {"ranking": (0, 40), "pairwise": (0, 20)}
    report = simulate_collection(owner, opened, CrewConfig(), judge)
    assert report.submitted == 60 and len(report.annotators) == 6
    return opened


def test_wrong_token_and_wrong_password(owner: LabelStudio) -> None:
    with LabelStudio(owner.url, "e" * 40) as stranger, pytest.raises(BadCredentials):
        stranger.whoami()
    with pytest.raises(BadCredentials):
        wait_until_ready(owner.url, "e" * 40, 60.0)
    first = ensure_account(owner, "greta@rlhf.local", "password-of-greta", "Greta")
    again = ensure_account(owner, "greta@rlhf.local", "password-of-greta", "Greta")
    assert first == again and first.token.get_secret_value() != TOKEN
    with LabelStudio(owner.url, first.token.get_secret_value()) as greta:
        assert greta.whoami()["first_name"] == "Greta"
    with pytest.raises(BadCredentials, match="greta"):
        ensure_account(owner, "greta@rlhf.local", "another-password")


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # a line of the SDK
def test_a_personal_access_token_is_as_good_as_a_legacy_one(owner: LabelStudio) -> None:
    personal = owner.post("/api/token/", {})["token"]
    assert personal.count(".") == 2 and personal != owner.token
    with LabelStudio(owner.url, personal) as client:
        assert client.whoami()["id"] == owner.whoami()["id"]
        project = open_project(client, "ranking", "personal token", 1)
        client.delete(f"/api/projects/{project.id}/")


def judged(owner: LabelStudio, collection: Collection) -> Progress:
    """How far a collection is, read whole."""
    with closing(Store()) as store:
        return progress(collection, store, sync_collection(owner, collection, store))


def test_pushing_twice_stores_once(owner: LabelStudio) -> None:
    project = open_project(owner, "ranking", "push twice", 2)
    tasks, _ = build_tasks("ranking", SETS, 0)
    ids = push(owner, project, tasks[:20]).ids
    again = push(owner, project, tasks).ids
    assert [again[task.uid] for task in tasks[:20]] == [ids[task.uid] for task in tasks[:20]]
    assert len(owner.tasks(project.id, "id")) == len(stored(owner, project)) == 30


def test_a_project_is_found_again_until_its_screen_changes(owner: LabelStudio) -> None:
    one = open_project(owner, "pairwise", "versions", 2)
    assert open_project(owner, "pairwise", "versions", 2) == one
    more = open_project(owner, "pairwise", "versions", 3)
    assert more.id != one.id and owner.get(f"/api/projects/{one.id}/")["maximum_annotations"] == 2
    assert (one.title, more.title) == ("versions pairwise", "versions pairwise 2")
    owner.call(owner.sdk.projects.update, one.id, title="renamed by hand", maximum_annotations=5)
    assert open_project(owner, "pairwise", "versions", 2) == one.model_copy(update={"title": "renamed by hand"})
    assert owner.get(f"/api/projects/{one.id}/")["maximum_annotations"] == 2
    french = screen("pairwise", shipped("fr"))
    assert open_project(owner, "pairwise", "versions", 2, screen=french).id != one.id


def test_every_task_has_exactly_the_overlap_from_different_people(owner: LabelStudio, collection: Collection) -> None:
    for batch in collection.batches:
        rows = list(owner.tasks_with_annotations(batch.project.id))
        assert len(rows) == len(batch.tasks)
        for row in rows:
            people = [annotation["completed_by"] for annotation in row["annotations"]]
            assert len(people) == len(set(people)) == 2
    assert judged(owner, collection).share == 1.0


def test_the_crew_does_nothing_twice(owner: LabelStudio, collection: Collection) -> None:
    assert simulate_collection(owner, collection, CrewConfig(), judge).submitted == 0


def test_pull(owner: LabelStudio, collection: Collection) -> None:
    pulled = pull_collection(owner, collection)
    rows = pulled.comparisons + pulled.ties
    assert not pulled.quarantined and pulled.judgements == 60 and pulled.skips == 0
    assert len(rows) == 40 * 6 + 20 and len({row.id for row in rows}) == len(rows)
    assert {row.prompt.id for row in rows} == {row.prompt.id for row in SETS}
    originals = {row.prompt.id: row for row in SETS}
    for row in rows:
        assert {row.chosen, row.rejected} <= set(originals[row.prompt.id].responses)
        assert row.prompt.split == originals[row.prompt.id].prompt.split
    best = Counter(row.chosen.text for row in pulled.comparisons)
    assert best["Mara Lind."] > best["Why do you ask, you fool?"]
    assert pulled.agreement.overall.share is not None and 0.55 < pulled.agreement.overall.share < 0.9
    assert len(pulled.quality) == 6 and sum(one.judgements for one in pulled.quality) == 60
    assert pull_collection(owner, collection) == pulled


def test_strange_annotations_land_in_quarantine(owner: LabelStudio, tmp_path: Path) -> None:
    opened = open_sets(owner, config("strange", overlap=2), SETS, tmp_path)
    ranking = opened.batches[0]
    some = [(task, ranking.task_ids[task.uid]) for task in ranking.tasks]
    owner.annotate(some[0][1], [{"foo": "bar"}], 1.0)
    owner.annotate(some[1][1], ranking_result(["r_no", "r_such", "r_id", "r_here"]), 1.0)
    owner.annotate(some[2][1], [], 1.0, skip=True)
    for order in (some[3][0].shown, some[3][0].shown[::-1]):
        owner.annotate(some[3][1], ranking_result(order), 1.0)
    pulled = pull_collection(owner, opened)
    assert len(pulled.comparisons) == 6 and pulled.skips == 1
    assert pulled.comparisons[0].chosen == some[3][0].responses[some[3][0].shown[-1]]
    reasons = sorted(row.reason for row in pulled.quarantined)
    assert len(reasons) == 3
    assert reasons[0].startswith("an item without a control name") and reasons[1].startswith("superseded")
    assert reasons[2].startswith("the ranking")


def test_an_edit_and_a_deletion_are_followed(owner: LabelStudio, tmp_path: Path) -> None:
    opened = open_sets(owner, config("edits"), SETS[:2], tmp_path)
    task = opened.batches[0].tasks[0]
    number = owner.annotate(opened.batches[0].task_ids[task.uid], ranking_result(task.shown), 1.0)
    assert pull_collection(owner, opened).comparisons[0].chosen == task.responses[task.shown[0]]
    owner.patch(f"/api/annotations/{number}/", {"result": ranking_result(task.shown[::-1])})
    assert pull_collection(owner, opened).comparisons[0].chosen == task.responses[task.shown[-1]]
    owner.delete(f"/api/annotations/{number}/")
    assert pull_collection(owner, opened).comparisons == []


def test_the_crew_judges_its_collection_whatever_somebody_else_judged_in_it(owner: LabelStudio, tmp_path: Path) -> None:
    opened = open_sets(owner, config("shared work"), SETS[:3], tmp_path)
    batch = opened.batches[0]
    owner.annotate(batch.task_ids[batch.tasks[0].uid], ranking_result(batch.tasks[0].shown), 1.0)
    assert simulate_collection(owner, opened, CrewConfig(annotators=2), judge).submitted == 3 * 2
    assert judged(owner, opened).share == 1.0 and len(pull_collection(owner, opened).quarantined) == 1


def test_a_crew_that_was_interrupted_goes_on_as_it_would_have(owner: LabelStudio, tmp_path: Path) -> None:
    crew = CrewConfig(annotators=2, temperature=0.2, threads=1)
    straight = open_sets(owner, config("straight"), SETS[:4], tmp_path / "one")
    simulate_collection(owner, straight, crew, judge)
    broken = open_sets(owner, config("broken"), SETS[:4], tmp_path / "two")
    calls = 0

    def tired(prompt_id: str, text: str) -> Mapping[str, float]:
        nonlocal calls
        calls += 1
        if calls > 14:
            raise KeyboardInterrupt
        return judge(prompt_id, text)

    with pytest.raises(KeyboardInterrupt):
        simulate_collection(owner, broken, crew, tired)
    assert 0 < judged(owner, broken).done < 8
    simulate_collection(owner, broken, crew, judge)
    one, two = (pull_collection(owner, some).comparisons for some in (straight, broken))

    def said(rows: list[Comparison]) -> set[tuple[str, str, str]]:
        return {(row.annotator_id, row.chosen.id, row.rejected.id) for row in rows}

    assert said(one) == said(two) and len(one) == len(two) == 4 * 2 * 6


def test_gold_tasks_and_a_senior_through_the_server(owner: LabelStudio, tmp_path: Path) -> None:
    known = [
        Comparison(id=f"gold_{row.prompt.id}", prompt=row.prompt, chosen=row.responses[0], rejected=other, strength=2)
        for row in SETS[4:8]
        for other in row.responses[1:]
    ]
    quality = QualityOptions(gold=GoldTasks(share=0.5), dispute_ranking=0.01)
    told = LabelingConfig(
        title="gold", rankings=RankingTasks(prompts=4), pairwise=PairwiseTasks(prompts=0), quality=quality
    )
    opened = open_sets(owner, told, SETS[:4], tmp_path, known)
    assert open_sets(owner, told, SETS[:4], tmp_path, known) == opened == read_collection(tmp_path)
    assert len(opened.tasks) == 6 and len(opened.answers) == 2
    simulate_collection(owner, opened, CrewConfig(annotators=2, temperature=0.5, seed=7), judge)
    store = Store()
    pulled = pull_collection(owner, opened, store, quality)
    assert len(pulled.gold) == 2 * 2 * 6 and len(pulled.comparisons) == 4 * 2 * 6 and pulled.disputes
    second = open_adjudication(owner, told, opened, pulled.disputes, tmp_path / "senior")
    assert {batch.project.overlap for batch in second.batches} == {1}
    assert not {batch.project.id for batch in second.batches} & {batch.project.id for batch in opened.batches}
    (batch,) = second.batches
    for task in batch.tasks:
        owner.annotate(batch.task_ids[task.uid], ranking_result(task.shown), 9.0)
    settled = pull_collection(owner, opened, store, quality, second)
    assert len(settled.all_judgements) == settled.judgements == pulled.judgements + len(batch.tasks)
    assert {one.number for one in store.projects()} == {one.project.id for one in (*opened.batches, *second.batches)}
    ruled = {task.prompt.id for task in batch.tasks}
    assert {row.annotator_id for row in settled.comparisons if row.prompt.id in ruled} == {str(owner.whoami()["id"])}
    assert len(settled.set_aside) == 2 * 6 * len(batch.tasks) and not settled.disputes
