"""Screening: which annotators are excluded and why, and which tasks are disputed.

Label Studio Community cannot take a person off a project, so screening works on judgements: nothing is deleted on
the server, and excluded judgements return when the options change.
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

CHANCE = 0.5  # of two who name a winner at random agreeing
SENIOR = "a senior's judgement stands instead"


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
    """Open concerns by annotator id, in words; annotators without concerns are left out."""
    known = [
        annotator
        for annotator in crew
        if annotator.agreement.share is not None and annotator.judgements >= options.minimum_judgements
    ]
    usual = median(annotator.agreement.share or 0.0 for annotator in known) if known else CHANCE
    least = CHANCE + options.minimum_agreement * max(0.0, usual - CHANCE)
    reasons_by_annotator = {
        annotator.annotator_id: [*_about_answers(annotator, least, options), *_about_habits(annotator, options)]
        for annotator in crew
        if annotator.judgements >= options.minimum_judgements
    }
    for pair, rated in agreed.annotators.items():
        if rated.low is not None and rated.low > options.maximum_pair_agreement and _often(rated.count):
            annotator, partner = pair.split(" and ")
            for first, second in ((annotator, partner), (partner, annotator)):
                if first in reasons_by_annotator:
                    reasons_by_annotator[first].append(
                        f"says the same as {second} in {rated.share:.0%} of {rated.count} pairs"
                    )
    return {annotator: tuple(reasons) for annotator, reasons in reasons_by_annotator.items() if reasons}


def _often(pairs: int) -> bool:
    return pairs >= 20


def _about_answers(annotator: AnnotatorQuality, least: float, options: Screening) -> list[str]:
    """Concerns about the content of judgements."""
    reasons = []
    if annotator.agreement.high is not None and annotator.agreement.high < least:
        reasons.append(
            f"agrees with the others in {annotator.agreement.share:.0%} of pairs, at most "
            f"{annotator.agreement.high:.0%}; {least:.0%} are asked for"
        )
    if annotator.gold.high is not None and annotator.gold.high < options.minimum_gold:
        reasons.append(
            f"has {annotator.gold.share:.0%} of {annotator.gold.count} known answers right; "
            f"{options.minimum_gold:.0%} are asked for"
        )
    if (annotator.contradiction_share or 0.0) > options.maximum_contradictions and annotator.contradictable >= 10:
        reasons.append(f"prefers in {annotator.contradiction_share:.0%} of pairs what got the fewer stars")
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
        reasons.append(f"prefers the left one in {annotator.left_share:.0%} of pairs")
    tau = annotator.position_correlation
    if tau is not None and _significant(annotator.position_p_value, level) and abs(tau) > limit:
        reasons.append(f"ranks as shown (correlation {tau:+.2f} with the order on the screen)")
    share = annotator.untouched_share
    if share is not None and _significant(annotator.untouched_p_value, level) and share > options.maximum_untouched:
        reasons.append(f"leaves {share:.0%} of rankings as they were shown")
    if (annotator.hasty_share or 0.0) > options.maximum_hasty:
        reasons.append(f"took in {annotator.hasty_share:.0%} of tasks less than a quarter of the usual time")
    return reasons


def _significant(p_value: float | None, level: float) -> bool:
    return p_value is not None and p_value < level


def set_aside(
    concerns_by_annotator: Mapping[str, tuple[str, ...]], annotators: Sequence[str], options: Screening
) -> dict[str, tuple[str, ...]]:
    """Excluded annotators with the reasons: concerns, if `options.apply`, and being in `options.exclude`."""
    chosen = {
        annotator: reasons
        for annotator, reasons in concerns_by_annotator.items()
        if options.apply and annotator not in options.keep
    }
    named = {
        annotator: ("excluded in labeling.quality.screening.exclude",)
        for annotator in options.exclude
        if annotator in annotators
    }
    return {
        annotator: (*named.get(annotator, ()), *chosen.get(annotator, ())) for annotator in sorted({*chosen, *named})
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
        apart = distance(of_task)
        if apart is not None and apart >= limit:
            disputed.append(
                Dispute(
                    task_uid=uid,
                    kind=kind,
                    distance=apart,
                    prompt=tasks[uid].prompt.text,
                    annotation_ids=tuple(judgement.annotation_id for judgement in of_task),
                    annotator_ids=tuple(judgement.annotator_id for judgement in of_task),
                )
            )
    return sorted(disputed, key=lambda dispute: (dispute.kind, -dispute.distance, dispute.task_uid))


def distance(judgements: Sequence[Judgement]) -> float | None:
    """How far apart the judgements of one task are; None for fewer than two.

    For rankings the mean over two people of the share of pairs that they order the other way round (Kendall's distance,
    of 1; a pair that one of them ties is none);
    for pairwise judgements the greatest distance of two preferences (of 6).
    """
    orders = [
        judgement.ranks for judgement in judgements if isinstance(judgement, RankingJudgement) and judgement.ranking
    ]
    if len(orders) > 1:
        return mean(_kendall(first, second) for first, second in combinations(orders, 2))
    preferences = [judgement.preference for judgement in judgements if isinstance(judgement, PairwiseJudgement)]
    return float(max(preferences) - min(preferences)) if len(preferences) > 1 else None


def _kendall(ranks: Mapping[str, int], other_ranks: Mapping[str, int]) -> float:
    pairs = list(combinations(ranks, 2))
    return sum((ranks[a] - ranks[b]) * (other_ranks[a] - other_ranks[b]) < 0 for a, b in pairs) / len(pairs)
