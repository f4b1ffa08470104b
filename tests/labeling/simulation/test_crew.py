"""Simulated annotators: deterministic, with the requested noise, equal loads and browser-like results."""

import math
import random
from collections import Counter

import pytest

from labeling.config import CrewConfig
from labeling.judgements.judgement import PairwiseJudgement
from labeling.judgements.parse import parse_annotation
from labeling.simulation.crew import (
    deal,
    gumbel,
    make_crew,
    utilities,
    work_on,
)
from labeling.simulation.temperature import fitting_temperature
from labeling.tasks.tasks import make_task
from tests.labeling.helpers import judge, response_set

ROWS = [response_set(number) for number in range(60)]


def test_a_crew_is_the_same_for_a_seed_and_differs_in_taste() -> None:
    crew = make_crew(CrewConfig(seed=3))
    assert crew == make_crew(CrewConfig(seed=3)) and crew != make_crew(CrewConfig(seed=4))
    assert len({one.email for one in crew}) == len({one.weights for one in crew}) == 6
    plain = make_crew(CrewConfig(seed=3, bias=0.0))
    assert len({one.weights for one in plain}) == 1 and {one.likes_length for one in plain} == {0.0}


def test_what_an_annotator_says_depends_on_seed_person_and_task_alone() -> None:
    crew = make_crew(CrewConfig())
    task = make_task("ranking", ROWS[0].prompt, ROWS[0].responses, 0)
    says = [work_on(one, task.data, "prompt_0", judge, 0.2, 0) for one in crew]
    assert says == [work_on(one, task.data, "prompt_0", judge, 0.2, 0) for one in crew]
    assert len({str(result) for result, _ in says}) > 1


@pytest.mark.parametrize("kind", ["ranking", "pairwise"])
def test_results_are_what_the_screens_make(kind: str) -> None:
    crew = make_crew(CrewConfig())
    for row in ROWS:
        task = make_task(kind, row.prompt, row.responses, 0)  # type: ignore[arg-type]
        result, lead_time = work_on(crew[0], task.data, row.prompt.id, judge, 0.2, 0)
        raw = {"id": 1, "completed_by": 2, "result": result, "lead_time": lead_time, "created_at": ""}
        parsed = parse_annotation(raw, task)
        assert parsed.lead_time > 0
        assert not isinstance(parsed, PairwiseJudgement) or len(parsed.ratings) == 6


def test_gumbel_noise_makes_bradley_terry() -> None:
    rng = random.Random(0)
    wins = sum(0.8 + gumbel(rng) > 0.0 + gumbel(rng) for _ in range(20_000))
    # sigmoid(0.8) = 0.68997; standard deviation of the share 0.0033
    assert wins / 20_000 == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.012)


def test_the_temperature_of_an_agreement_by_hand() -> None:
    crew = [one.model_copy(update={"noisiness": 1.0}) for one in make_crew(CrewConfig(annotators=2))]
    scored = [[[1.0, 0.0], [2.0, 0.0]]]
    p, q = (1 / (1 + math.exp(-u / 0.5)) for u in (1.0, 2.0))
    assert fitting_temperature(crew, scored, p * q + (1 - p) * (1 - q)) == pytest.approx(0.5, abs=1e-9)


def test_the_noise_is_found_for_the_agreement_asked_and_holds_in_what_is_said() -> None:
    crew = make_crew(CrewConfig())
    tasks = [make_task("ranking", row.prompt, row.responses, 0) for row in map(response_set, range(300))]
    scored = [[utilities(one, task.data, task.prompt.id, judge) for one in crew] for task in tasks]
    heat = fitting_temperature(crew, scored, 0.73)
    same = total = 0
    for task in tasks:
        orders = [
            work_on(one, task.data, task.prompt.id, judge, heat, 0)[0][0]["value"]["ranker"]["ranking"] for one in crew
        ]
        for one, other in ((a, b) for i, a in enumerate(orders) for b in orders[:i]):
            for first in task.shown:
                for second in task.shown:
                    if first < second:
                        total += 1
                        same += (one.index(first) < one.index(second)) == (other.index(first) < other.index(second))
    # 1,800 pairs, each judged by six: the standard deviation is below 0.01
    assert same / total == pytest.approx(0.73, abs=0.03)


def test_dealing_is_even_and_to_different_people() -> None:
    crew = make_crew(CrewConfig())
    dealt = deal([f"task_{i}" for i in range(100)], crew, 2, 0)
    assert all(len(set(emails)) == 2 for emails in dealt.values())
    load = Counter(email for emails in dealt.values() for email in emails)
    assert max(load.values()) - min(load.values()) <= 1
    assert len({tuple(sorted(emails)) for emails in dealt.values()}) == 15  # all pairs of six people meet
