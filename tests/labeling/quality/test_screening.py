"""Gold tasks, screening, adjudication and weights, with bad simulated annotators and without a server."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from alignment.records import Comparison, ResponseSet
from labeling.config import CrewConfig, GoldTasks, LabelingConfig, QualityOptions, Screening
from labeling.judgements.comparisons import comparisons
from labeling.judgements.judgement import Judged, PairwiseJudgement, RankingJudgement
from labeling.judgements.parse import parse_annotation
from labeling.quality.assess import Assessment, assess
from labeling.quality.known_answers import gold_accuracy
from labeling.quality.screening import SENIOR, disputes, distance
from labeling.reports.figures import crew_figures
from labeling.simulation.crew import deal, make_crew, utilities, work_on
from labeling.simulation.temperature import fitting_temperature
from labeling.tasks.gold import Answers, gold_tasks
from labeling.tasks.tasks import Task, build_tasks, make_task
from tests.labeling.helpers import judge, response_set

SETS = [response_set(number) for number in range(240)]
APPLIED = QualityOptions(screening=Screening(apply=True))


def known(row: ResponseSet, *pairs: tuple[int, int]) -> list[Comparison]:
    return [
        Comparison(
            id=f"gold-{row.prompt.id}-{a}-{b}",
            prompt=row.prompt,
            chosen=row.responses[a],
            rejected=row.responses[b],
            strength=2,
        )
        for a, b in pairs
    ]


def work(config: CrewConfig) -> tuple[list[Judged], dict[str, Task], Answers]:
    """What a crew says of rankings, pairs and gold tasks; annotators are numbered from 1."""
    tasks = build_tasks("ranking", SETS[:180], 0)[0] + build_tasks("pairwise", SETS[180:220], 0)[0]
    rows = [one for row in SETS[220:] for one in known(row, (0, 3), (0, 1))]
    gold = gold_tasks(rows, {"ranking": 10, "pairwise": 10}, {task.uid for task in tasks}, 0)
    every = {task.uid: task for task in [*tasks, *gold.tasks["ranking"], *gold.tasks["pairwise"]]}
    crew = make_crew(config)
    good = [one for one in crew if one.habit == "careful"]
    scored = [[utilities(one, task.data, task.prompt.id, judge) for one in good] for task in tasks]
    heat, said = fitting_temperature(good, scored, 0.73), []
    for uid, emails in deal(list(every), crew, 3, 0).items():
        for number, one in enumerate(crew, start=1):
            if one.email in emails:
                result, seconds = work_on(one, every[uid].data, every[uid].prompt.id, judge, heat, 0)
                raw = {"id": len(said) + 1, "completed_by": number, "result": result, "lead_time": seconds}
                said.append(parse_annotation(raw, every[uid]))
    return said, every, gold.answers


@pytest.fixture(scope="module")
def mixed_crew() -> tuple[list[Judged], dict[str, Task], Answers]:
    return work(CrewConfig(annotators=9, careless=1, side_biased=1, spamming=1))


def doubted(assessment: Assessment) -> set[str]:
    return {one.annotator_id for one in assessment.quality if one.concerns}


def test_the_bad_are_found_and_the_good_left_alone(mixed_crew: tuple[list[Judged], dict[str, Task], Answers]) -> None:
    said, tasks, answers = mixed_crew
    found = assess(said, tasks, {}, QualityOptions(), answers)
    assert doubted(found) == {"7", "8", "9"} and not found.set_aside
    reliability = {one.annotator_id: one.reliability or 0.0 for one in found.quality}
    assert max(reliability["7"], reliability["9"]) < min(reliability[str(good)] for good in range(1, 7))
    assert set(crew_figures(found.quality)) == {"annotators", "habits"}
    careful, tasks, answers = work(CrewConfig(annotators=6))
    assert doubted(assess(careful, tasks, {}, QualityOptions(), answers)) == set()


def test_by_default_every_judgement_is_handed_on(mixed_crew: tuple[list[Judged], dict[str, Task], Answers]) -> None:
    said, tasks, _ = mixed_crew
    rows, ties = comparisons(said, tasks)
    found = assess(said, tasks, {}, QualityOptions())
    assert [row.model_copy(update={"weight": 1.0}) for row in found.comparisons] == rows and found.ties == ties
    assert sum(row.weight for row in found.comparisons) / len(rows) == pytest.approx(1.0)


def test_setting_aside_loses_nothing_and_can_be_taken_back(
    mixed_crew: tuple[list[Judged], dict[str, Task], Answers],
) -> None:
    said, tasks, answers = mixed_crew
    plain, screened = (assess(said, tasks, {}, options, answers) for options in (QualityOptions(), APPLIED))
    assert {row.comparison.annotator_id for row in screened.set_aside} == {"7", "8", "9"}
    assert all(row.reasons for row in screened.set_aside)
    kept = {row.id for row in screened.comparisons + screened.ties}
    aside = {row.comparison.id for row in screened.set_aside}
    assert not kept & aside and kept | aside == {row.id for row in plain.comparisons + plain.ties}
    back = QualityOptions(screening=Screening(apply=True, keep=("8",), exclude=("1",)))
    changed = assess(said, tasks, {}, back, answers)
    assert {one.annotator_id for one in changed.quality if one.set_aside} == {"1", "7", "9"}
    (first,) = [one for one in changed.quality if one.annotator_id == "1"]
    assert first.concerns == ("excluded in labeling.quality.screening.exclude",) and first.weight == 0.0
    with pytest.raises(ValidationError, match="remove it from one"):
        Screening(keep=("1",), exclude=("1",))


def test_the_colluding_give_themselves_away() -> None:
    said, tasks, answers = work(CrewConfig(annotators=6, colluding=2, careless_rate=0.5))
    found = assess(said, tasks, {}, QualityOptions(), answers)
    reasons = {one.annotator_id: " ".join(one.concerns) for one in found.quality}
    assert "agrees with 6 on" in reasons["5"] and "agrees with 5 on" in reasons["6"]


def test_gold_tasks_look_like_all_others_and_stay_out_of_training(
    mixed_crew: tuple[list[Judged], dict[str, Task], Answers],
) -> None:
    said, tasks, answers = mixed_crew
    assert len(answers) == 20
    for uid in answers:
        same_kind = next(task for key, task in tasks.items() if key not in answers and task.kind == tasks[uid].kind)
        assert tasks[uid].data.keys() == same_kind.data.keys()
    found = assess(said, tasks, {}, QualityOptions(), answers)
    gold_prompts = {tasks[uid].prompt.id for uid in answers}
    assert not gold_prompts & {row.prompt.id for row in found.comparisons + found.ties}
    assert {row.prompt.id for row in found.gold} == gold_prompts
    shares = {one.annotator_id: one.gold.share or 0.0 for one in found.quality}
    assert min(shares[str(good)] for good in range(1, 7)) > shares["9"]


def test_gold_answers_by_hand() -> None:
    row = SETS[0]
    rows = known(row, (0, 3), (1, 2))
    gold = gold_tasks(rows, {"ranking": 1, "pairwise": 0}, set(), 0)
    (task,) = gold.tasks["ranking"]
    place = {response.text: opaque for opaque, response in task.responses.items()}
    order = [place[row.responses[i].text] for i in (0, 2, 3, 1)]
    said = RankingJudgement(annotation_id="1", annotator_id="5", task_uid=task.uid, created_at="", ranking=tuple(order))
    got, _ = comparisons([said], {task.uid: task})
    graded_five = gold_accuracy(got, gold.answers)["5"]
    assert graded_five.count == 2 and graded_five.share == 0.5
    # Wilson with one trial, none right: high = z² / (1 + z²) = 3.8415 / 4.8415; one wrong answer alone dooms nobody
    assert (graded_five.low, graded_five.high) == pytest.approx((0.0, 0.79346), abs=1e-5)
    whole = gold_tasks(known(row, (0, 3), (0, 1)), {"ranking": 1}, set(), 0, {row.prompt.id: row.responses})
    assert [len(task.responses) for task in whole.tasks["ranking"]] == [4]  # as long as what is not gold
    (pairs,) = whole.answers.values()
    assert pairs == tuple((row.responses[0].id, row.responses[i].id) for i in (3, 1))
    contradicting = gold_tasks(known(row, (0, 1), (1, 0), (0, 2)), {"ranking": 1, "pairwise": 0}, set(), 0)
    assert not contradicting.answers and "contradict" in contradicting.rejected[0].reason
    again = gold_tasks(rows, {"ranking": 1, "pairwise": 0}, {task.uid}, 0)
    assert not again.answers and "ordinary" in again.rejected[0].reason


def test_disputes_and_the_seniors_word() -> None:
    task = make_task("ranking", SETS[0].prompt, SETS[0].responses, 0)
    pair = make_task("pairwise", SETS[1].prompt, SETS[1].responses, 0)
    tasks = {task.uid: task, pair.uid: pair}

    def order(by: str, *places: int) -> RankingJudgement:
        return RankingJudgement(
            annotation_id=by,
            annotator_id=by,
            task_uid=task.uid,
            created_at="",
            ranking=tuple(task.shown[i] for i in places),
        )

    def prefer(by: str, preference: int) -> PairwiseJudgement:
        return PairwiseJudgement(
            annotation_id=f"{by}0", annotator_id=by, task_uid=pair.uid, created_at="", preference=preference
        )

    assert distance([order("5", 0, 1, 2, 3), order("6", 1, 0, 2, 3)]) == pytest.approx(1 / 6)
    tied = order("6", 1, 0, 2, 3).model_copy(update={"ties": (1,)})
    assert tied.ranks == {task.shown[1]: 0, task.shown[0]: 0, task.shown[2]: 1, task.shown[3]: 2}
    assert distance([order("5", 0, 1, 2, 3), tied]) == 0.0  # a tie is not the other way round
    assert distance([prefer("5", 2), prefer("6", -3)]) == 5.0 and distance([prefer("5", 2)]) is None
    said: list[Judged] = [order("5", 0, 1, 2, 3), order("6", 3, 2, 1, 0), prefer("5", 1), prefer("6", -1)]
    (dispute,) = disputes(said, tasks, QualityOptions())
    assert dispute.task_uid == task.uid and dispute.distance == 1.0 and dispute.annotator_ids == ("5", "6")
    ruled = assess(said, tasks, {}, QualityOptions(), senior=[order("9", 2, 0, 1, 3)])
    assert {row.annotator_id for row in ruled.comparisons if row.prompt == task.prompt} == {"9"}
    assert [row.reasons for row in ruled.set_aside] == [(SENIOR,)] * 12 and not ruled.disputes


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="raise annotators"):
        CrewConfig(annotators=2, careless=3)
    with pytest.raises(ValidationError, match="remove it"):
        LabelingConfig(quality=QualityOptions(gold=GoldTasks(share=0.1, path=str(Path("gold.jsonl")))))
    with pytest.raises(ValidationError, match="needs people"):
        LabelingConfig(quality=QualityOptions(adjudicate=True))
