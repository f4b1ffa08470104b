"""Conversion of judgements to comparisons and demonstrations."""

from collections.abc import Iterable, Mapping
from itertools import combinations

from alignment.records import Comparison, Demonstration, stable_id
from labeling.judgements.judgement import Judgement, PairwiseJudgement, RankingJudgement, WrittenAnswer
from labeling.tasks.tasks import Task

STRONGEST = 3


def from_ranking(judgement: RankingJudgement, task: Task) -> list[Comparison]:
    """All C(K,2) pairs of a ranking; the strength is the distance in ranks, at most 3, and 0 within a tie.

    Without an order all pairs are ties; with `cannot_judge` there are no pairs.
    """
    if judgement.cannot_judge:
        return []
    if not judgement.ranking:
        return [_comparison(judgement, task, a, b, strength=0) for a, b in combinations(task.shown, 2)]
    ranks = judgement.ranks
    return [
        _comparison(judgement, task, better, worse, strength=min(ranks[worse] - ranks[better], STRONGEST))
        for better, worse in combinations(judgement.ranking, 2)
    ]


def from_pairwise(judgement: PairwiseJudgement, task: Task) -> Comparison:
    """The pair, its strength, and the difference in stars for each criterion rated on both sides."""
    a, b = task.shown
    sides = ("a", "b") if judgement.preference >= 0 else ("b", "a")
    chosen, rejected = (a, b) if judgement.preference >= 0 else (b, a)
    rated = judgement.ratings
    criteria = {name: rated[f"{sides[0]}_{name}"] - rated[f"{sides[1]}_{name}"] for name in rated_criteria(judgement)}
    return _comparison(judgement, task, chosen, rejected, abs(judgement.preference), criteria)


def rated_criteria(judgement: PairwiseJudgement) -> tuple[str, ...]:
    """The criteria that were rated on both sides."""
    names = (name.partition("_")[2] for name in judgement.ratings if name.startswith("a_"))
    return tuple(name for name in names if f"b_{name}" in judgement.ratings)


def _rated_apart(judgement: RankingJudgement, better: str, worse: str) -> dict[str, int]:
    """The difference in stars of two answers of a ranking, for each criterion rated on both."""
    first, second = (judgement.ratings.get(opaque, {}) for opaque in (better, worse))
    return {name: first[name] - second[name] for name in first if name in second}


def _comparison(
    judgement: Judgement, task: Task, chosen: str, rejected: str, strength: int, criteria: dict[str, int] | None = None
) -> Comparison:
    if isinstance(judgement, RankingJudgement):
        criteria = _rated_apart(judgement, chosen, rejected)
    better, worse = task.responses[chosen], task.responses[rejected]
    return Comparison(
        id=stable_id("cmp", judgement.task_uid, judgement.annotation_id, *sorted((better.id, worse.id))),
        prompt=task.prompt,
        chosen=better,
        rejected=worse,
        strength=strength,
        criteria=criteria or {},
        annotation_id=judgement.annotation_id,
        annotator_id=judgement.annotator_id,
        task_uid=judgement.task_uid,
        chosen_first=task.shown.index(chosen) < task.shown.index(rejected),
    )


def comparisons(
    judgements: Iterable[Judgement], tasks: Mapping[str, Task]
) -> tuple[list[Comparison], list[Comparison]]:
    """(Comparisons with a winner, ties of strength 0) of all ranking and pairwise judgements."""
    rows: list[Comparison] = []
    for judgement in judgements:
        task = tasks[judgement.task_uid]
        if isinstance(judgement, RankingJudgement):
            rows += from_ranking(judgement, task)
        elif isinstance(judgement, PairwiseJudgement) and not judgement.cannot_judge:
            rows.append(from_pairwise(judgement, task))
    return [row for row in rows if row.strength], [row for row in rows if not row.strength]


def demonstrations(judgements: Iterable[Judgement], tasks: Mapping[str, Task]) -> list[Demonstration]:
    """Written answers as demonstrations for fine-tuning; `source` names the annotation."""
    return [
        Demonstration(
            id=stable_id("demo", written.task_uid, written.annotation_id),
            messages=tasks[written.task_uid].prompt.messages,
            completion=written.answer.strip(),
            source=f"label-studio/annotation/{written.annotation_id}/annotator/{written.annotator_id}",
        )
        for written in judgements
        if isinstance(written, WrittenAnswer)
    ]
