"""Screening: which annotators are excluded and why, and which tasks are disputed.

Label Studio Community cannot remove a person from a project, so screening works on judgements: nothing is deleted on
the server, and excluded judgements are included again when the options change.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean, median

from pydantic import Field

from alignment.records import Comparison, Record
from labeling.config import Kind, QualityOptions, Screening
from labeling.judgements.judgement import Judged, Judgement, PairwiseJudgement, RankingJudgement
from labeling.quality.results import Agreement, AnnotatorQuality
from labeling.tasks.tasks import Task

MINIMUM_PAIRS = 20  # for a concern about the agreement of two annotators
CHANCE = 0.5  # agreement of two annotators who name winners at random
SENIOR = "replaced by a senior annotator's judgement"


class SetAside(Record):
    """An excluded comparison, with the reasons."""

    reasons: tuple[str, ...] = Field(min_length=1)
    comparison: Comparison


class Dispute(Record):
    """A task on which annotators disagree strongly: `distance` is on the scale of its kind (see `QualityOptions`)."""

    task_uid: str
    kind: Kind
    distance: float
    prompt: str
    annotation_ids: tuple[str, ...]
    annotator_ids: tuple[str, ...]


def concerns(crew: Sequence[AnnotatorQuality], agreed: Agreement, options: Screening) -> dict[str, tuple[str, ...]]:
    """Open concerns by annotator id, as sentences; annotators without concerns are left out."""
    measured = [
        annotator
        for annotator in crew
        if annotator.agreement.share is not None and annotator.judgements >= options.minimum_judgements
    ]
    usual = median(annotator.agreement.share or 0.0 for annotator in measured) if measured else CHANCE
    least = CHANCE + options.minimum_agreement * max(0.0, usual - CHANCE)
    reasons_by_annotator = {
        annotator.annotator_id: [*_about_answers(annotator, least, options), *_about_habits(annotator, options)]
        for annotator in crew
        if annotator.judgements >= options.minimum_judgements
    }
    for pair, rated in agreed.annotators.items():
        if rated.low is not None and rated.low > options.maximum_pair_agreement and rated.count >= MINIMUM_PAIRS:
            annotator, partner = pair.split(" and ")
            for first, second in ((annotator, partner), (partner, annotator)):
                if first in reasons_by_annotator:
                    reasons_by_annotator[first].append(
                        f"agrees with {second} on {rated.share:.0%} of {rated.count} pairs"
                    )
    return {annotator: tuple(reasons) for annotator, reasons in reasons_by_annotator.items() if reasons}


def _about_answers(annotator: AnnotatorQuality, least: float, options: Screening) -> list[str]:
    """Concerns about the content of judgements."""
    reasons = []
    if annotator.agreement.high is not None and annotator.agreement.high < least:
        reasons.append(
            f"agrees with the others on {annotator.agreement.share:.0%} of pairs (at most "
            f"{annotator.agreement.high:.0%}); the minimum is {least:.0%}"
        )
    if annotator.gold.high is not None and annotator.gold.high < options.minimum_gold:
        reasons.append(
            f"answers {annotator.gold.share:.0%} of {annotator.gold.count} gold pairs correctly; "
            f"the minimum is {options.minimum_gold:.0%}"
        )
    if (annotator.contradiction_share or 0.0) > options.maximum_contradictions and annotator.contradictable >= 10:
        reasons.append(f"prefers the response with fewer stars in {annotator.contradiction_share:.0%} of pairs")
    return reasons


def _about_habits(annotator: AnnotatorQuality, options: Screening) -> list[str]:
    """Concerns about habits."""
    reasons = []
    limit, level = options.maximum_position, options.significance
    if (
        annotator.left_share is not None
        and _significant(annotator.left_p_value, level)
        and abs(annotator.left_share - 0.5) > limit
    ):
        reasons.append(f"prefers the left response in {annotator.left_share:.0%} of pairs")
    tau = annotator.position_correlation
    if tau is not None and _significant(annotator.position_p_value, level) and abs(tau) > limit:
        reasons.append(f"rankings correlate with the order shown (tau {tau:+.2f})")
    share = annotator.untouched_share
    if share is not None and _significant(annotator.untouched_p_value, level) and share > options.maximum_untouched:
        reasons.append(f"leaves {share:.0%} of rankings as shown")
    if (annotator.hasty_share or 0.0) > options.maximum_hasty:
        reasons.append(f"took less than a quarter of the usual time for {annotator.hasty_share:.0%} of tasks")
    return reasons


def _significant(p_value: float | None, level: float) -> bool:
    return p_value is not None and p_value < level


def set_aside(
    concerns_by_annotator: Mapping[str, tuple[str, ...]], annotators: Sequence[str], options: Screening
) -> dict[str, tuple[str, ...]]:
    """Excluded annotators with the reasons: concerns, if `options.apply`, and membership in `options.exclude`."""
    screened = {
        annotator: reasons
        for annotator, reasons in concerns_by_annotator.items()
        if options.apply and annotator not in options.keep
    }
    listed = {
        annotator: ("excluded in labeling.quality.screening.exclude",)
        for annotator in options.exclude
        if annotator in annotators
    }
    return {
        annotator: (*listed.get(annotator, ()), *screened.get(annotator, ()))
        for annotator in sorted({*screened, *listed})
    }


def disputes(judgements: Sequence[Judged], tasks: Mapping[str, Task], options: QualityOptions) -> list[Dispute]:
    """Disputed tasks, by kind and falling distance."""
    by_task: dict[str, list[Judged]] = defaultdict(list)
    for judgement in judgements:
        by_task[judgement.task_uid].append(judgement)
    disputed = []
    for uid, of_task in by_task.items():
        kind = tasks[uid].kind
        limit = options.dispute_ranking if kind == "ranking" else options.dispute_steps
        disagreement = distance(of_task)
        if disagreement is not None and disagreement >= limit:
            disputed.append(
                Dispute(
                    task_uid=uid,
                    kind=kind,
                    distance=disagreement,
                    prompt=tasks[uid].prompt.text,
                    annotation_ids=tuple(judgement.annotation_id for judgement in of_task),
                    annotator_ids=tuple(judgement.annotator_id for judgement in of_task),
                )
            )
    return sorted(disputed, key=lambda dispute: (dispute.kind, -dispute.distance, dispute.task_uid))


def distance(judgements: Sequence[Judgement]) -> float | None:
    """The distance between the judgements of one task; None for fewer than two.

    For rankings: the mean over pairs of annotators of the normalised Kendall distance, the share of pairs that they
    order oppositely (0 to 1; a pair tied by either does not count as opposite). For pairwise judgements: the greatest
    difference of two preferences (0 to 6).
    """
    orders = [
        judgement.ranks for judgement in judgements if isinstance(judgement, RankingJudgement) and judgement.ranking
    ]
    if len(orders) > 1:
        return mean(_kendall(first, second) for first, second in combinations(orders, 2))
    preferences = [
        judgement.preference
        for judgement in judgements
        if isinstance(judgement, PairwiseJudgement) and not judgement.cannot_judge
    ]
    return float(max(preferences) - min(preferences)) if len(preferences) > 1 else None


def _kendall(ranks: Mapping[str, int], other_ranks: Mapping[str, int]) -> float:
    pairs = list(combinations(ranks, 2))
    return sum((ranks[a] - ranks[b]) * (other_ranks[a] - other_ranks[b]) < 0 for a, b in pairs) / len(pairs)
