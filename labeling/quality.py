"""How each annotator works: agreement with the others, habits of position, speed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from alignment.records import Comparison
from labeling.agreement import double_judgements, votes
from labeling.annotations import Judgement, PairwiseJudgement, RankingJudgement
from labeling.tasks import Task


class AnnotatorQuality(BaseModel):
    """One annotator's figures; None where there is nothing to count.

    `first_position_share` is how often what was shown first (on top, or left) won, divided by how often that would be
    by chance: 1 is no habit. `untouched_share` is the share of rankings left in the order shown (by chance 1/K!).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotator_id: str
    judgements: int
    skips: int
    agreement_with_others: float | None
    first_position_share: float | None
    untouched_share: float | None
    median_lead_time_seconds: float | None


def quality(
    judgements: Iterable[Judgement],
    tasks: Mapping[str, Task],
    comparisons: Sequence[Comparison],
    skips: Mapping[str, int],
) -> list[AnnotatorQuality]:
    """The figures of everyone who judged or skipped, by annotator id."""
    by_annotator: dict[str, list[Judgement]] = {annotator: [] for annotator in skips}
    for judgement in judgements:
        by_annotator.setdefault(judgement.annotator_id, []).append(judgement)
    agreed = _agreement_with_others(comparisons)
    return [
        AnnotatorQuality(
            annotator_id=annotator,
            judgements=len(own),
            skips=skips.get(annotator, 0),
            agreement_with_others=agreed.get(annotator),
            first_position_share=_first_position(own, tasks),
            untouched_share=_untouched(own, tasks),
            median_lead_time_seconds=median(times) if (times := [j.lead_time for j in own if j.lead_time]) else None,
        )
        for annotator, own in sorted(by_annotator.items())
    ]


def _untouched(judgements: Sequence[Judgement], tasks: Mapping[str, Task]) -> float | None:
    orders = [j for j in judgements if isinstance(j, RankingJudgement) and j.ranking]
    return sum(j.ranking == tasks[j.task_uid].shown for j in orders) / len(orders) if orders else None


def _agreement_with_others(comparisons: Sequence[Comparison]) -> dict[str, float]:
    same: dict[str, list[bool]] = defaultdict(list)
    for _, one, other, agreed in double_judgements(votes(comparisons)):
        same[one].append(agreed)
        same[other].append(agreed)
    return {annotator: sum(values) / len(values) for annotator, values in same.items()}


def _first_position(judgements: Sequence[Judgement], tasks: Mapping[str, Task]) -> float | None:
    wins = expected = 0.0
    for judgement in judgements:
        shown = tasks[judgement.task_uid].shown
        if isinstance(judgement, RankingJudgement) and judgement.ranking:
            wins += judgement.ranking[0] == shown[0]
            expected += 1 / len(shown)
        elif isinstance(judgement, PairwiseJudgement) and judgement.preference:
            wins += judgement.preference > 0
            expected += 1 / 2
    return wins / expected if expected else None
