"""Strict parsing: results of our label configs are parsed, anything else is quarantined with a reason."""

from typing import Any

import pytest

from labeling.judgements.comparisons import comparisons, demonstrations
from labeling.judgements.controls import controls_of
from labeling.judgements.judgement import PairwiseJudgement, RankingJudgement, WrittenAnswer
from labeling.judgements.parse import PREFERENCES, InvalidAnnotation, parse, parse_annotation
from labeling.names import config_hash
from labeling.quality.screening import distance
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen
from labeling.tasks.tasks import Task, make_task
from tests.labeling.helpers import response_set

ROW = response_set(1, split="heldout")
RANKING = make_task("ranking", ROW.prompt, ROW.responses, 0)
PAIRWISE = make_task("pairwise", ROW.prompt, ROW.responses, 0)
WRITING = make_task("demonstration", ROW.prompt, (), 0)
RANKED = {"type": "choices", "from_name": "confirm", "to_name": "prompt", "value": {"choices": ["ranked"]}}
UNRANKABLE = RANKED | {"value": {"choices": ["unrankable"]}}
CANNOT = RANKED | {"value": {"choices": ["cannot_judge"]}}
LABEL_CONFIGS = {task.kind: screen(task.kind, ratings=True).label_config for task in (RANKING, PAIRWISE, WRITING)}


def ranker(ids: Any) -> dict[str, Any]:
    value = {"ranker": {"ranking": ids}}
    return {"type": "ranker", "from_name": "ranking", "to_name": "responses", "value": value}


def preference(choice: str) -> dict[str, Any]:
    return {"type": "choices", "from_name": "preference", "to_name": "prompt", "value": {"choices": [choice]}}


def several(name: str, to: str, *choices: Any) -> dict[str, Any]:
    return {"type": "choices", "from_name": name, "to_name": to, "value": {"choices": list(choices)}}


def rating(name: str, stars: Any) -> dict[str, Any]:
    return {"type": "rating", "from_name": name, "to_name": f"response_{name[0]}", "value": {"rating": stars}}


def one_of(name: str, stars: Any) -> dict[str, Any]:
    return {"type": "rating", "from_name": name, "to_name": "prompt", "value": {"rating": stars}}


def asked(text: str) -> dict[str, Any]:
    return answer(text) | {"from_name": "question"}


def clicked(side: str) -> dict[str, Any]:
    return {"type": "pairwise", "from_name": "pairwise", "to_name": "pairwise", "value": {"selected": side}}


def answer(text: str) -> dict[str, Any]:
    return {"type": "textarea", "from_name": "answer", "to_name": "prompt", "value": {"text": [text]}}


def annotation(result: Any, number: int = 1, by: Any = 5, at: str = "2026-01-01", **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "completed_by": by,
        "result": result,
        "was_cancelled": False,
        "lead_time": 2.5,
        "task": 9,
        "created_at": at,
    } | more


def exported(task: Task, *annotations: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": 9, "data": task.data, "annotations": list(annotations)}]


def test_a_ranking_becomes_six_comparisons_with_the_rank_distance_as_strength() -> None:
    order = [RANKING.shown[i] for i in (2, 0, 3, 1)]
    found = parse_annotation(annotation([ranker(order), RANKED]), RANKING)
    assert isinstance(found, RankingJudgement) and found.ranking == tuple(order)
    rows, ties = comparisons([found], {RANKING.uid: RANKING})
    names = [RANKING.responses[opaque] for opaque in order]
    assert [(row.chosen, row.rejected, row.strength) for row in rows] == [
        (names[0], names[1], 1),
        (names[0], names[2], 2),
        (names[0], names[3], 3),
        (names[1], names[2], 1),
        (names[1], names[3], 2),
        (names[2], names[3], 1),
    ]
    assert not ties
    assert {(row.annotation_id, row.annotator_id, row.prompt.split) for row in rows} == {("1", "5", "heldout")}
    assert len({row.id for row in rows}) == 6


def test_no_order_is_six_ties() -> None:
    found = parse_annotation(annotation([ranker(list(RANKING.shown)), UNRANKABLE]), RANKING)
    rows, ties = comparisons([found], {RANKING.uid: RANKING})
    assert not rows and len(ties) == 6 and {tie.strength for tie in ties} == {0}


def test_places_that_are_as_good_as_the_next_are_ties() -> None:
    order = RANKING.shown  # 1 and 2 are alike, 3 and 4 are alike
    result = [ranker(list(order)), RANKED, several("ties", "prompt", "3", "1")]
    found = parse_annotation(annotation(result), RANKING)
    assert isinstance(found, RankingJudgement) and found.ties == (1, 3)
    rows, ties = comparisons([found], {RANKING.uid: RANKING})
    names = {RANKING.responses[opaque].id: place for place, opaque in enumerate(order, start=1)}
    said = [(names[row.chosen.id], names[row.rejected.id], row.strength) for row in rows]
    assert said == [(1, 3, 1), (1, 4, 1), (2, 3, 1), (2, 4, 1)]
    assert [(names[row.chosen.id], names[row.rejected.id]) for row in ties] == [(1, 2), (3, 4)]
    assert all(row.chosen_first and row.task_uid == RANKING.uid for row in rows)


def test_who_cannot_judge_says_nothing_about_the_responses() -> None:
    confirm = RANKED | {"value": {"choices": ["cannot_judge"]}}
    found = parse_annotation(annotation([ranker(list(RANKING.shown)), confirm]), RANKING)
    assert isinstance(found, RankingJudgement) and found.cannot_judge and not found.ranking
    assert comparisons([found], {RANKING.uid: RANKING}) == ([], [])


def test_flags_are_kept_by_side_and_an_annotation_of_older_screens_has_none() -> None:
    result = [preference("b_1"), several("a_flags", "response_a", "unsafe", "refuses_wrongly")]
    found = parse_annotation(annotation(result), PAIRWISE)
    assert isinstance(found, PairwiseJudgement)
    assert found.flags == {"a_flags": ("refuses_wrongly", "unsafe")}
    older = parse_annotation(annotation([preference("b_1")]), PAIRWISE)
    assert isinstance(older, PairwiseJudgement) and older.flags == {}


def test_a_task_of_an_older_screen_is_still_believed() -> None:
    rows = exported(PAIRWISE, annotation([preference("a_1")]))
    older = ("before", "facts", "prompt_code", "a_code", "b_code", "a_cut", "b_cut")
    rows[0]["data"] = {name: value for name, value in PAIRWISE.data.items() if name not in older}
    assert len(parse(rows, [PAIRWISE], 2, "place").judgements) == 1


def test_nine_responses_are_thirty_six_pairs_of_strength_three_at_most() -> None:
    row = response_set(2, tuple(f"answer {i}" for i in range(9)))
    task = make_task("ranking", row.prompt, row.responses, 0)
    found = parse_annotation(annotation([ranker(list(task.shown)), RANKED]), task)
    rows, _ = comparisons([found], {task.uid: task})
    assert len(rows) == 36 and max(r.strength for r in rows) == 3


@pytest.mark.parametrize(
    ("choice", "winner", "strength"),
    [("a_3", 0, 3), ("a_2", 0, 2), ("a_1", 0, 1), ("tie", 0, 0), ("b_1", 1, 1), ("b_2", 1, 2), ("b_3", 1, 3)],
)
def test_pairwise_choices(choice: str, winner: int, strength: int) -> None:
    stars = [rating("a_helpful", 5), rating("b_helpful", 2), rating("a_truthful", 1), rating("b_harmless", 3)]
    found = parse_annotation(annotation([*stars, preference(choice)]), PAIRWISE)
    assert isinstance(found, PairwiseJudgement)
    rows, ties = comparisons([found], {PAIRWISE.uid: PAIRWISE})
    (row,) = rows + ties
    assert row.chosen == PAIRWISE.responses[PAIRWISE.shown[winner]]
    assert row.rejected == PAIRWISE.responses[PAIRWISE.shown[1 - winner]]
    assert row.strength == strength and len(ties) == (strength == 0)
    assert row.criteria == {"helpful": 3 if winner == 0 else -3}  # the others were rated on one side only


def test_a_written_answer_becomes_a_demonstration() -> None:
    found = parse_annotation(annotation([answer("Mara Lind.\nAsk at the mill. ")]), WRITING)
    assert isinstance(found, WrittenAnswer)
    (row,) = demonstrations([found], {WRITING.uid: WRITING})
    assert row.completion == "Mara Lind.\nAsk at the mill." and row.messages == ROW.prompt.messages


STRANGE: list[tuple[Task, Any, str]] = [
    (RANKING, [{"foo": "bar"}], "without a control name"),
    (RANKING, "text", "empty"),
    (RANKING, [], "empty"),
    (RANKING, ["text"], "without a control name"),
    (RANKING, [RANKED], "'ranking' holds None"),
    (RANKING, [ranker(list(RANKING.shown))], "'confirm' is missing"),
    (RANKING, [ranker(list(RANKING.shown)), ranker(list(RANKING.shown)), RANKED], "duplicate control"),
    (RANKING, [ranker(list(RANKING.shown[:3])), RANKED], "not an order"),
    (RANKING, [ranker([*RANKING.shown[:3], RANKING.shown[0]]), RANKED], "not an order"),
    (RANKING, [ranker([*RANKING.shown[:3], "r_elsewhere"]), RANKED], "not an order"),
    (RANKING, [ranker([1, 2, 3, 4]), RANKED], "not an order"),
    (RANKING, [ranker(list(RANKING.shown)), RANKED | {"value": {"choices": ["ranked", "unrankable"]}}], "'confirm'"),
    (RANKING, [ranker(list(RANKING.shown)), RANKED, preference("a_1")], "unknown control 'preference'"),
    (RANKING, [ranker(list(RANKING.shown)) | {"type": "choices"}, RANKED], "'ranking' holds"),
    (RANKING, [ranker(list(RANKING.shown)), RANKED, several("ties", "prompt", "9")], "'ties' holds"),
    (RANKING, [RANKED, one_of("helpful_4", 3)], "about an answer that the task does not have"),
    (RANKING, [RANKED, one_of("helpful_0", 6)], "'helpful_0' holds 6"),
    (RANKING, [RANKED, several("flags_0", "prompt", "funny")], "'flags_0' holds"),
    (RANKING, [ranker(list(RANKING.shown)), RANKED, several("ties", "prompt", 1)], "'ties' holds"),
    (PAIRWISE, [preference("a_1"), several("a_flags", "response_a", "funny")], "'a_flags' holds"),
    (PAIRWISE, [preference("a_1"), several("a_flags", "response_a", "unsafe", "unsafe")], "'a_flags' holds"),
    (PAIRWISE, [preference("a_1"), several("a_flags", "response_b", "unsafe")], "'a_flags' holds"),
    (PAIRWISE, [preference("a_1"), several("a_flags", "response_a") | {"value": {"choices": "x"}}], "'a_flags' holds"),
    (PAIRWISE, [rating("a_helpful", 5)], "'preference' is missing"),
    (PAIRWISE, [preference("a_4")], "'preference' holds"),
    (PAIRWISE, [preference("a_1"), rating("a_helpful", 6)], "'a_helpful' holds 6"),
    (PAIRWISE, [preference("a_1"), rating("a_helpful", True)], "'a_helpful' holds True"),
    (PAIRWISE, [preference("a_1"), rating("a_funny", 3)], "unknown control 'a_funny'"),
    (PAIRWISE, [preference("a_1"), rating("a_helpful", 3) | {"to_name": "response_b"}], "'a_helpful' holds"),
    (PAIRWISE, [preference("a_1"), clicked("right")], "but the preference is for the other"),
    (PAIRWISE, [preference("b_2"), clicked("left")], "but the preference is for the other"),
    (PAIRWISE, [preference("b_2"), clicked("middle")], "'pairwise' holds"),
    (WRITING, [answer("  ")], "'answer' is missing or empty"),
    (WRITING, [answer("x") | {"value": {"text": ["a", "b"]}}], "'answer' holds"),
]


ALLOWED: list[tuple[Task, list[Any]]] = [  # whatever the screens let through is a judgement
    *((PAIRWISE, [preference(choice)]) for choice in (*PREFERENCES, "cannot_judge")),
    (PAIRWISE, [preference("cannot_judge"), rating("a_helpful", 5), several("b_flags", "response_b", "sexual")]),
    (PAIRWISE, [preference("b_3"), rating("a_helpful", 5), rating("b_helpful", 1)]),
    (PAIRWISE, [preference("a_1"), rating("a_helpful", 0), rating("b_truthful", None)]),  # stars taken back
    (PAIRWISE, [preference("tie"), several("a_flags", "response_a")]),  # flags taken back
    (PAIRWISE, [preference("tie"), answer("") | {"from_name": "rationale"}, asked(" ")]),
    *((RANKING, [ranker(list(RANKING.shown)), choice]) for choice in (RANKED, UNRANKABLE, CANNOT)),
    (RANKING, [ranker(list(RANKING.shown)), CANNOT, several("ties", "prompt", "1"), one_of("truthful_3", 1)]),
    (RANKING, [ranker(list(RANKING.shown)), RANKED, several("ties", "prompt", "8", "1")]),  # by keys: no ninth answer
    (WRITING, [answer("Mara Lind."), asked("Is a joke fine?")]),
]


@pytest.mark.parametrize(("task", "result"), ALLOWED)
def test_whatever_a_screen_allows_is_counted(task: Task, result: list[Any]) -> None:
    parsed = parse(exported(task, annotation(result)), [task], 2, "place", controls_of(LABEL_CONFIGS[task.kind]))
    assert len(parsed.judgements) == 1 and not parsed.quarantined
    assert parsed.judgements[0].guidelines == shipped("en").version


def test_ties_of_answers_that_a_task_lacks_are_none() -> None:
    found = parse_annotation(annotation(ALLOWED[-2][1]), RANKING)
    assert isinstance(found, RankingJudgement) and found.ties == (1,)


def test_who_cannot_judge_a_pair_compares_nothing_and_disputes_nothing() -> None:
    results = ([preference("cannot_judge")], [preference("b_3")])
    judged = [parse_annotation(annotation(result, i, by=i), PAIRWISE) for i, result in enumerate(results, start=1)]
    rows, ties = comparisons(judged, {PAIRWISE.uid: PAIRWISE})
    assert [row.annotation_id for row in rows] == ["2"] and not ties
    assert distance(judged) is None


def test_stars_of_a_ranking_are_by_answer_and_become_criteria() -> None:
    order = list(RANKING.shown[::-1])
    stars = [one_of("helpful_0", 2), one_of("helpful_3", 5), one_of("truthful_3", 4)]
    flags = several("flags_0", "prompt", "sexual", "made_up_fact")
    found = parse_annotation(annotation([ranker(order), RANKED, *stars, flags]), RANKING)
    assert isinstance(found, RankingJudgement)
    first, last = RANKING.shown[0], RANKING.shown[3]
    assert found.ratings == {first: {"helpful": 2}, last: {"helpful": 5, "truthful": 4}}
    assert found.flags == {first: ("made_up_fact", "sexual")}
    rows, _ = comparisons([found], {RANKING.uid: RANKING})
    rated = [row for row in rows if row.criteria]
    assert [(row.chosen.id, row.criteria) for row in rated] == [(RANKING.responses[last].id, {"helpful": 3})]


def test_a_question_to_the_team_lead_is_read_from_judgements_and_skips() -> None:
    rows = exported(
        PAIRWISE,
        annotation([preference("a_1"), asked(" May it joke? ")], 1),
        annotation([asked("Is this a language?")], 2, by=6, was_cancelled=True, updated_at="2026-01-02"),
        annotation([preference("a_2")], 3, by=7),
    )
    parsed = parse(rows, [PAIRWISE], 9, "place")
    assert [(q.text, q.annotator_id, q.skipped, q.asked_at) for q in parsed.questions] == [
        ("May it joke?", "5", False, "2026-01-01"),
        ("Is this a language?", "6", True, "2026-01-02"),
    ]
    assert {q.task_uid for q in parsed.questions} == {PAIRWISE.uid}
    assert [judgement.question for judgement in parsed.judgements] == ["May it joke?", ""]


def test_a_label_config_of_an_earlier_version_is_read_by_its_own_criteria_and_flags() -> None:
    old = """<View><Rating name="a_helpful" toName="response_a"/><Rating name="a_brief" toName="response_a"/>
      <Choices name="a_flags" toName="response_a"><Choice value="Unsafe" alias="unsafe"/></Choices></View>"""
    controls = controls_of(old)
    assert (controls.criteria, controls.flags) == (("helpful", "brief"), ("unsafe",))
    assert controls.guidelines == config_hash(old)
    result = [preference("a_1"), rating("a_brief", 2), several("a_flags", "response_a", "unsafe"), clicked("left")]
    parsed = parse(exported(PAIRWISE, annotation(result)), [PAIRWISE], 1, "place", controls)
    assert not parsed.quarantined and isinstance(judgement := parsed.judgements[0], PairwiseJudgement)
    assert (judgement.ratings, judgement.flags) == ({"a_brief": 2}, {"a_flags": ("unsafe",)})
    later = parse(
        exported(PAIRWISE, annotation(result)), [PAIRWISE], 1, "place", controls_of(LABEL_CONFIGS["pairwise"])
    )
    assert "unknown control 'a_brief'" in later.quarantined[0].reason


@pytest.mark.parametrize(("task", "result", "reason"), STRANGE)
def test_strange_results_are_put_aside(task: Task, result: Any, reason: str) -> None:
    parsed = parse(exported(task, annotation(result, number=77)), [task], 2, "place")
    assert not parsed.judgements
    (row,) = parsed.quarantined
    assert reason in row.reason and row.line == 77 and row.file == "place/task/9"


def test_clicking_a_side_agrees_with_the_choice_or_with_a_tie() -> None:
    for choice, side in (("a_1", "left"), ("b_3", "right"), ("tie", "left")):
        parse_annotation(annotation([preference(choice), clicked(side)]), PAIRWISE)


def test_an_annotation_of_nobody_is_strange() -> None:
    with pytest.raises(InvalidAnnotation, match="no annotator"):
        parse_annotation(annotation([preference("a_1")], by=None), PAIRWISE)


def test_skips_are_counted_and_their_leftovers_ignored() -> None:
    half_done = annotation([rating("a_helpful", 3)], was_cancelled=True)
    parsed = parse(exported(PAIRWISE, half_done, annotation([preference("tie")], 2, by=6)), [PAIRWISE], 2, "place")
    assert parsed.skips == {"5": 1} and len(parsed.judgements) == 1 and not parsed.quarantined


def test_of_one_person_the_newest_counts_and_of_too_many_people_the_first() -> None:
    rows = [
        annotation([preference("a_1")], 1, by=5, at="2026-01-01T00:00:01Z"),
        annotation([preference("b_1")], 2, by=5, at="2026-01-01T00:00:04Z"),
        annotation([preference("a_2")], 3, by=6, at="2026-01-01T00:00:02Z"),
        annotation([preference("a_3")], 4, by=7, at="2026-01-01T00:00:03Z"),
    ]
    parsed = parse(exported(PAIRWISE, *rows), [PAIRWISE], 2, "place")
    assert sorted(j.annotation_id for j in parsed.judgements) == ["3", "4"]
    reasons = {row.line: row.reason for row in parsed.quarantined}
    assert "superseded by a later" in reasons[1] and "exceeds the overlap of 2" in reasons[2]


def test_judgements_of_a_task_go_by_annotator_and_not_by_who_was_faster() -> None:
    def names(*at: str) -> list[str]:
        rows = [annotation([preference("a_1")], 4 - i, by=by, at=at[i]) for i, by in enumerate((10, 9, 7))]
        return [j.annotator_id for j in parse(exported(PAIRWISE, *rows), [PAIRWISE], 3, "place").judgements]

    assert names("1", "2", "3") == names("3", "1", "2") == ["7", "9", "10"]


def test_a_task_that_was_changed_on_the_server_is_not_believed() -> None:
    rows = exported(PAIRWISE, annotation([preference("a_1")]))
    rows[0]["data"] = PAIRWISE.data | {"response_a": "something else"}
    parsed = parse(rows, [PAIRWISE], 2, "place")
    assert "differ from what was uploaded" in parsed.quarantined[0].reason


def test_tasks_of_others_in_the_project_are_left_alone() -> None:
    parsed = parse(exported(RANKING, annotation([{"foo": "bar"}])), [PAIRWISE], 2, "place")
    assert not parsed.judgements and not parsed.quarantined
