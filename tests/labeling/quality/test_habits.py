"""Habit statistics against hand-computed values, without false positives."""

import pytest

from labeling.judgements.judgement import PairwiseJudgement, RankingJudgement
from labeling.quality.annotators import kappas
from labeling.quality.habits import contradictions, hasty, intransitive, left_share, position_correlation, untouched
from labeling.tasks.tasks import make_task
from tests.labeling.helpers import response_set

ROW = response_set(1)
RANKING = make_task("ranking", ROW.prompt, ROW.responses, 0)
PAIR = make_task("pairwise", ROW.prompt, ROW.responses, 0)
TASKS = {RANKING.uid: RANKING, PAIR.uid: PAIR}


def ranked(order: tuple[int, ...], number: int = 1, seconds: float = 0.0) -> RankingJudgement:
    return RankingJudgement(
        annotation_id=str(number),
        annotator_id="5",
        task_uid=RANKING.uid,
        created_at="",
        lead_time=seconds,
        ranking=tuple(RANKING.shown[i] for i in order),
    )


def preferred(preference: int, **ratings: int) -> PairwiseJudgement:
    return PairwiseJudgement(
        annotation_id="1", annotator_id="5", task_uid=PAIR.uid, created_at="", preference=preference, ratings=ratings
    )


def test_share_of_left_and_its_binomial_test() -> None:
    # 9 of 10: 2 (10 + 1) / 2**10; ties do not count
    share, p_value = left_share([preferred(2)] * 9 + [preferred(-1), preferred(0)])
    assert share == 0.9 and p_value == pytest.approx(22 / 1024, abs=1e-12)
    assert left_share([preferred(0)]) == (None, None)


def test_correlation_with_the_order_shown() -> None:
    # tau of (1,0,2,3) is (5 − 1) / 6, of the reverse −1; for K = 4 the variance is 2 · 13 / (9 · 4 · 3) = 0.2407
    tau, p_value = position_correlation([ranked((1, 0, 2, 3))], TASKS)
    assert tau == pytest.approx(2 / 3)
    assert p_value == pytest.approx(0.1742, abs=2e-4)  # z = 0.6667 / 0.4907 = 1.3587
    assert position_correlation([ranked((3, 2, 1, 0))], TASKS)[0] == pytest.approx(-1.0)
    tied = ranked((0, 1, 2, 3)).model_copy(update={"ties": (1, 3)})
    assert position_correlation([tied], TASKS)[0] == pytest.approx(4 / 6)
    assert position_correlation([], TASKS) == (None, None)


def test_untouched_rankings() -> None:
    # both of two left as shown, by chance (1/24)²
    share, p_value = untouched([ranked((0, 1, 2, 3)), ranked((0, 1, 2, 3), 2)], TASKS)
    assert share == 1.0 and p_value == pytest.approx(1 / 576, abs=1e-12)
    assert untouched([ranked((0, 1, 2, 3)).model_copy(update={"ties": (2,)})], TASKS)[0] == 0.0


def test_preference_against_the_stars() -> None:
    both = {"a_helpful": 5, "b_helpful": 2, "a_truthful": 3, "b_truthful": 4}  # the stars say A, by 3 − 1
    said = [preferred(1, **both), preferred(-2, **both), preferred(0, **both), preferred(1), preferred(1, a_helpful=5)]
    assert contradictions(said) == (0.5, 2)


def test_triples_that_go_round() -> None:
    ring = {("p", "a", "b"): {"5": 1}, ("p", "b", "c"): {"5": 1}, ("p", "a", "c"): {"5": -1}}
    assert intransitive(ring, "5") == (1.0, 1)
    assert intransitive(ring | {("p", "a", "c"): {"5": 1}}, "5") == (0.0, 1)
    assert intransitive(ring | {("p", "a", "c"): {"5": 0, "6": 1}}, "5") == (None, 0)


def test_hasty_against_the_crowd() -> None:
    usual = [ranked((0, 1, 2, 3), number, 20.0 + number % 3) for number in range(20)]
    found = hasty([*usual, ranked((0, 1, 2, 3), 99, 2.0)], TASKS)
    assert found.pop("99") is True and not any(found.values())
    assert hasty(usual[:9], TASKS) == {}


def test_hasty_allows_for_the_length_of_the_text() -> None:
    rows = [response_set(n, ("a " * 40 * (1 + n % 10), "b " * 40 * (1 + n % 10))) for n in range(40)]
    tasks = {task.uid: task for task in (make_task("ranking", row.prompt, row.responses, 0) for row in rows)}
    said = [
        RankingJudgement(
            annotation_id=uid,
            annotator_id="5",
            task_uid=uid,
            created_at="",
            ranking=task.shown,
            lead_time=4 + 20 * (1 + int(task.prompt.id.split("_")[1]) % 10),
        )
        for uid, task in tasks.items()
    ]
    assert not any(hasty(said, tasks).values())  # 24 s to 204 s, all at the pace of the text
    longest = max(said, key=lambda one: one.lead_time)
    quick = longest.model_copy(update={"lead_time": 24.0})
    assert hasty([quick if one is longest else one for one in said], tasks)[longest.annotation_id]


def test_kappa_by_hand() -> None:
    # Cohen's 2x2 by hand: both 1 in 20, 1/-1 in 5, -1/1 in 10, both -1 in 15: p_o = .7, p_e = .5, kappa = .4
    cells = [(1, 1)] * 20 + [(1, -1)] * 5 + [(-1, 1)] * 10 + [(-1, -1)] * 15
    found = {("p", str(i), "x"): {"A": a, "B": b} for i, (a, b) in enumerate(cells)}
    assert kappas(found) == pytest.approx({"A": 0.4, "B": 0.4}, abs=1e-12)
    assert kappas({("p", "1", "x"): {"A": 1, "B": 1}}) == {"A": None, "B": None}
