"""Tasks that are full with annotations that do not count."""

from typing import Any

from labeling.judgements.judgement import Judgement
from labeling.reopen import needed_overlaps


def annotation(**fields: Any) -> dict[str, Any]:
    return {"was_cancelled": False, "ground_truth": False, **fields}


def row(number: int, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"uid": f"uid{number}"}, "annotations": list(annotations)}


def judgement(number: int, person: str) -> Judgement:
    return Judgement(annotation_id="1", annotator_id=person, task_uid=f"uid{number}", created_at="")


def test_what_does_not_count_is_added_to_the_overlap_of_full_tasks_only() -> None:
    skip, star = annotation(was_cancelled=True), annotation(ground_truth=True)
    rows = [
        row(1, annotation(), annotation()),  # two that do not count
        row(2, annotation(), annotation()),  # one of two counts
        row(3, annotation(), annotation()),  # both count
        row(4, annotation()),  # not full
        row(5, annotation(), skip, star),  # Label Studio counts neither skips nor ground truths
        row(6, *[annotation()] * 5),  # one account that answered four times, and one that counts
    ]
    valid = [judgement(2, "1"), judgement(3, "1"), judgement(3, "2"), judgement(6, "1")]
    assert needed_overlaps(rows, valid, 2) == {1: 4, 2: 3, 6: 6}
