"""Selection by hand-computed values: near-duplicates, disagreement, policies, budgets, and the order of responses."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from alignment.records import Response, ResponseSet
from labeling.reports.effort import ASSUMED, hours, lead_times, pace
from labeling.tasks.balance import balance, order_p_value, position_counts
from labeling.tasks.selection import (
    affordable,
    by_worth,
    disagreement,
    in_random_order,
    interleaved,
    most_disputed_pair,
    preference_variance,
)
from labeling.tasks.similarity import nearly_same, policy_difference, resemblance, shingles
from labeling.tasks.tasks import build_tasks, make_task
from tests.labeling.helpers import response_set


def test_resemblance_is_shared_shingles_of_all() -> None:
    one, other = shingles("a rose is a rose is a rose", 4), shingles("a rose is a flower which is a rose", 4)
    assert len(one) == 3 and len(other) == 6  # Broder 1997, section 2, has the first one as its example
    assert resemblance(one, other) == 1 / 8  # only "a rose is a" is in both
    assert resemblance(shingles("a b c d", 2), shingles("b c d e", 2)) == 2 / 4
    assert shingles("short", 5) == {("short",)} and resemblance(shingles("", 5), shingles("", 5)) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Mara Lind.", " mara  lind ", True),
        ("line\n\n    indented", "Line\n    indented ", True),
        ("if x:\n    a()\nb()", "if x:\n    a()\n    b()", False),  # indentation is meaning
        ("a + b", "a - b", False),
        ("Is it Mara Lind?", "Is it Mara Lind.", False),
        ("Mara Lind is the baker.", "Mara Lind is not the baker.", False),
        ("word " * 300 + "1999", "word " * 300 + "1998", False),
        ("", "", True),
    ],
)
def test_what_is_nearly_the_same(one: str, other: str, alike: bool) -> None:
    assert nearly_same(one, other) is nearly_same(other, one) is alike


def test_one_word_among_enough_is_nearly_the_same() -> None:
    letters = [f"{a}{b}" for a in "abcdefghijklmn" for b in "abcdefghijklmno"][:199]
    changed = [*letters[:99], "zz", *letters[100:]]
    assert resemblance(shingles(" ".join(letters)), shingles(" ".join(changed))) == pytest.approx(190 / 200)
    assert nearly_same(" ".join(letters), " ".join(changed))
    assert not nearly_same(" ".join(letters[10:]), " ".join(changed[10:]))  # 180 / 190 is less than 0.95


def test_near_duplicates_are_shown_once() -> None:
    row = response_set(1, ("Mara Lind.", "mara lind", "Tom Berg.", "Tom  Berg"))
    task = make_task("ranking", row.prompt, row.responses, 0)
    assert sorted(response.text for response in task.responses.values()) == ["Mara Lind.", "Tom Berg."]
    _, (refused,) = build_tasks("pairwise", [response_set(2, ("Mara Lind.", "MARA LIND"))], 0)
    assert refused.reason.startswith("1 distinct responses")


def test_policies_that_say_the_same_do_not_differ() -> None:
    assert policy_difference(["a b", "c d"], ["c d", "a b"]) == 0.0
    assert policy_difference(["a b"], ["c d"]) == 2.0  # 1 + 1 − 2·0
    # sets {a,b}, {a,c} against {a,b}: (1 + 1 + 1/3 + 1/3)/4 + 1 − 2·(1 + 1/3)/2 = 2/3 + 1 − 4/3
    assert policy_difference(["a b", "a c"], ["a b"]) == pytest.approx(1 / 3)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_disagreement_is_the_variance_of_the_probability_of_preference() -> None:
    # two members: the first is preferred with 0.8 and 0.4, so V = 0.2² = 0.04; a constant for all changes nothing
    scores = np.array([[logit(0.8), 0.0], [logit(0.4) + 7.0, 7.0]])
    variance = preference_variance(scores)
    assert variance == pytest.approx(np.array([[0.0, 0.04], [0.04, 0.0]]))
    assert disagreement(scores) == pytest.approx(0.04)
    # a third response on which both agree exactly with the second: V_12 = 0, V_02 = V_01
    three = np.column_stack([scores, scores[:, 1]])
    assert disagreement(three) == pytest.approx((0.04 + 0.04 + 0.0) / 3)
    assert most_disputed_pair(three) == (0, 1)
    assert disagreement(np.array([[3.0, 1.0]])) == 0.0  # one member never disagrees


def test_the_order_is_repeatable_and_ties_are_drawn() -> None:
    items = {name: name.upper() for name in "abcdefgh"}
    turned = dict(reversed(items.items()))
    assert in_random_order(items, 3) == in_random_order(turned, 3) != in_random_order(items, 4)
    ordered = by_worth(items, {"c": 0.2, "a": 0.9, "b": 0.2}, 3)
    assert ordered == by_worth(turned, {"a": 0.9, "b": 0.2, "c": 0.2}, 3)
    assert ordered[0] == "A" and set(ordered[1:3]) == {"B", "C"} and set(ordered[3:]) == set("DEFGH")
    assert len({tuple(by_worth(items, {}, seed)) for seed in range(20)}) > 15


def test_a_budget_is_never_passed() -> None:
    wanted, costs = {"ranking": 100, "pairwise": 50}, {"ranking": 8.0, "pairwise": 4.0}  # 800 + 200
    assert affordable(wanted, costs, 1000.0) == affordable(wanted, costs, 5000.0) == wanted
    assert affordable(wanted, costs, 500.0) == {"ranking": 50, "pairwise": 25}
    assert affordable(wanted, costs, 333.0) == {"ranking": 33, "pairwise": 16}  # 264 + 64 = 328
    assert affordable({"ranking": 0}, {"ranking": 8.0}, 1.0) == {"ranking": 0}


def test_hours_are_tasks_times_overlap_times_seconds() -> None:
    few, many = pace("ranking", [10.0] * 19), pace("ranking", [60.0] * 19 + [86_400.0])
    assert (few.seconds, few.measured) == (ASSUMED["ranking"], 0)
    assert (many.seconds, many.measured) == ((19 * 60 + 1800) / 20, 20)
    assert hours({"ranking": 30}, {"ranking": 2}, {"ranking": many}) == {"ranking": pytest.approx(30 * 2 * 147 / 3600)}


def test_lead_times_are_those_of_people_who_judged() -> None:
    said = [
        {"lead_time": 12.5, "was_cancelled": False, "created_username": " paula@example.org, 3"},
        {"lead_time": 3.0, "was_cancelled": True, "created_username": " paula@example.org, 3"},
        {"lead_time": None, "was_cancelled": False},
        {"lead_time": 2.0, "was_cancelled": False, "created_username": "Ada ada.0@crew.rlhf.local, 4"},
    ]
    assert lead_times([{"annotations": said}]) == [12.5]


def test_responses_of_policies_alternate() -> None:
    assert interleaved([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def pairs(count: int) -> list[ResponseSet]:
    return [
        response_set(n, ("Mara Lind lives here.", "Tom Berg.")).model_copy(
            update={
                "responses": (
                    Response(id=f"x{n}", text="Mara Lind lives here."),
                    Response(id=f"y{n}", text="Tom Berg."),
                )
            }
        )
        for n in range(count)
    ]


def test_a_fair_order_is_balanced_and_an_unfair_one_is_not() -> None:
    tasks, _ = build_tasks("pairwise", pairs(200), 0)
    origins = {f"{letter}{n}": letter for letter in "xy" for n in range(200)}
    (found,) = balance(tasks, origins)
    assert found.tasks == 200 and sum(found.places["x"]) == 200
    assert found.places["x"] == found.places["y"][::-1]
    first = found.places["x"][0]
    assert found.longer_first == first / 200
    share = first / 200  # "Mara Lind lives here." has 21 characters, "Tom Berg." 9
    assert found.lengths == pytest.approx((21 * share + 9 * (1 - share), 9 * share + 21 * (1 - share)))
    assert found.p_value is not None and found.p_value > 0.01
    sorted_by_origin = [
        task.model_copy(update={"responses": dict(sorted(task.responses.items(), key=by_id))}) for task in tasks
    ]
    (unfair,) = balance(sorted_by_origin, origins)
    assert unfair.places == {"x": (200, 0), "y": (0, 200)} and unfair.p_value == 1 / 500


def by_id(item: tuple[str, Response]) -> str:
    return item[1].id


def test_fairness_equals_counting_all_orders() -> None:
    shown = np.array([[0, 1], [0, 1], [0, 1]])  # 8 orders, of which 000 and 111 are as one-sided as this
    assert position_counts(shown, 2).tolist() == [[3, 0], [0, 3]]
    assert order_p_value(shown) == pytest.approx(2 / 8, abs=4 * math.sqrt(0.25 * 0.75 / 499))
    assert order_p_value(np.zeros((5, 2), dtype=np.int64)) is None


def test_sizes_are_told_apart(texts: Sequence[str] = ("One.", "Two.", "Three.")) -> None:
    tasks, _ = build_tasks("ranking", [response_set(1, tuple(texts)), response_set(2)], 0)
    assert [(one.tasks, len(one.lengths)) for one in balance(tasks, {})] == [(1, 3), (1, 4)]
    assert balance([], {}) == []
