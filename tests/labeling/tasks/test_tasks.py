"""Tasks are blind, deterministic, and favour no position."""

import json
from collections import Counter

import pytest

from alignment.records import Prompt, ResponseSet
from labeling.config import LabelingConfig
from labeling.errors import TaskError
from labeling.tasks.tasks import build_tasks, build_writing_tasks, make_task
from tests.labeling.helpers import TEXTS, response_set


def test_a_task_shows_texts_and_nothing_of_ours() -> None:
    row = response_set(1)
    for kind in ("ranking", "pairwise"):
        tasks, rejected = build_tasks(kind, [row], seed=0)  # type: ignore[arg-type]
        shown = json.dumps(tasks[0].data)
        assert not rejected
        assert "model_x" not in shown and "prompt_1" not in shown
        assert all(not opaque.isdigit() for opaque in tasks[0].shown)
    assert {item["body"] for item in build_tasks("ranking", [row], 0)[0][0].data["responses"]} == set(TEXTS)


def test_the_same_content_and_seed_give_the_same_task() -> None:
    row = response_set(1)
    one, again = (make_task("ranking", row.prompt, row.responses, 7) for _ in range(2))
    assert one == again
    turned = make_task("ranking", row.prompt, row.responses[::-1], 7)
    assert set(turned.responses.values()) == set(one.responses.values())
    assert len({make_task("ranking", row.prompt, row.responses, seed).uid for seed in range(40)}) > 10


def test_opaque_ids_cannot_be_followed_from_task_to_task() -> None:
    row = response_set(1)
    ranked, paired = (set(make_task(kind, row.prompt, row.responses, 0).shown) for kind in ("ranking", "pairwise"))
    assert not ranked & paired


def test_every_response_comes_first_equally_often() -> None:
    first = Counter(
        make_task("ranking", row.prompt, row.responses, 0)
        .responses[make_task("ranking", row.prompt, row.responses, 0).shown[0]]
        .text
        for row in map(response_set, range(800))
    )
    # 800 draws of 1/4: standard deviation 12.2; five of them
    assert all(abs(first[text] - 200) < 61 for text in TEXTS)


def test_pairwise_draws_all_pairs_on_both_sides() -> None:
    seen = Counter(
        tuple(r.text for r in make_task("pairwise", row.prompt, row.responses, 0).responses.values())
        for row in map(response_set, range(600))
    )
    # 12 ordered pairs, 50 each; standard deviation 6.8
    assert len(seen) == 12 and all(abs(count - 50) < 34 for count in seen.values())


def test_duplicates_collapse_and_what_cannot_be_judged_is_handed_back() -> None:
    twice = response_set(1, ("Mara Lind.", " Mara Lind.\n", "Tom Berg."))
    alike = response_set(2, ("Mara Lind.", "Mara Lind. "))
    empty = response_set(3, ("Mara Lind.", "  "))
    tasks, rejected = build_tasks("ranking", [twice, alike, empty, twice], seed=0)
    assert [len(task.responses) for task in tasks] == [2]
    assert [(row.line, row.reason.split(";")[0]) for row in rejected] == [
        (2, "1 distinct responses"),
        (3, "a response is empty"),
        (4, "duplicate of an earlier response set"),
    ]


def test_ten_responses_are_too_many() -> None:
    row = response_set(1, tuple(f"answer {i}" for i in range(10)))
    with pytest.raises(TaskError, match="10 distinct"):
        make_task("ranking", row.prompt, row.responses, 0)


def test_a_prompt_to_write_for_is_there_once() -> None:
    rows: list[ResponseSet] = [response_set(1), response_set(2), response_set(1)]
    prompts: list[Prompt] = [row.prompt for row in rows]
    assert [task.prompt.id for task in build_writing_tasks(prompts)] == ["prompt_1", "prompt_2"]


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="set at least one"):
        LabelingConfig.model_validate({"rankings": {"prompts": 0}, "pairwise": {"prompts": 0}})
    with pytest.raises(ValueError, match=r"needs at least as many crew\.annotators"):
        LabelingConfig.model_validate({"rankings": {"overlap": 4}, "crew": {"annotators": 3}})
    with pytest.raises(ValueError, match="extra"):
        LabelingConfig.model_validate({"rankings": {"promts": 4}})
