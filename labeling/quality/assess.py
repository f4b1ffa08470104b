"""Assessment of judgements: gold tasks, annotator quality, screening, adjudication, comparison weights."""

from collections.abc import Mapping, Sequence

from alignment.records import Comparison, Record
from labeling.config import QualityOptions
from labeling.judgements.comparisons import comparisons
from labeling.judgements.judgement import Judged
from labeling.quality.agreement import agreement
from labeling.quality.annotators import quality
from labeling.quality.known_answers import gold_accuracy
from labeling.quality.reliability import reliabilities, weights
from labeling.quality.results import Agreement, AnnotatorQuality
from labeling.quality.screening import SENIOR, Dispute, SetAside, concerns, disputes, set_aside
from labeling.tasks.gold import Answers
from labeling.tasks.tasks import Task


class Assessment(Record):
    """Weighted comparisons, excluded comparisons, agreement, and the figures of annotators.

    `ties` have strength 0. `gold` are comparisons of gold tasks, which are never trained on. `agreement` is over the
    comparisons that are kept, `quality` covers all annotators.
    """

    comparisons: list[Comparison]
    ties: list[Comparison]
    gold: list[Comparison]
    set_aside: list[SetAside]
    disputes: list[Dispute]
    agreement: Agreement
    quality: list[AnnotatorQuality]


def assess(
    judgements: Sequence[Judged],
    tasks: Mapping[str, Task],
    skips: Mapping[str, int],
    options: QualityOptions,
    answers: Answers | None = None,
    senior: Sequence[Judged] = (),
) -> Assessment:
    """Assess judgements. With the default options every comparison is kept.

    `answers` are the known answers of gold tasks. `senior` judgements, from the adjudication project, replace all
    others of their task and are not screened.
    """
    answers = answers or {}
    ordinary = [judgement for judgement in judgements if judgement.task_uid not in answers]
    gold = _with_ties([judgement for judgement in judgements if judgement.task_uid in answers], tasks)
    all_rows = _with_ties(ordinary, tasks)
    agreed, eta = agreement(all_rows), reliabilities(all_rows)
    annotators = quality(ordinary, tasks, all_rows, skips, gold_accuracy(gold, answers))
    reasons = concerns(annotators, agreed, options.screening)
    excluded = set_aside(reasons, [annotator.annotator_id for annotator in annotators], options.screening)
    adjudicated = {judgement.task_uid for judgement in senior}
    kept, excluded_rows = _split_excluded(all_rows, excluded, adjudicated)
    if excluded or senior:
        kept += _with_ties(senior, tasks)
        agreed = agreement(kept)
        eta |= reliabilities(kept)
    rows = [row for row in kept if row.strength]
    weight = weights(rows, eta)
    disputable = [
        judgement
        for judgement in ordinary
        if judgement.annotator_id not in excluded and judgement.task_uid not in adjudicated
    ]
    return Assessment(
        comparisons=[row.model_copy(update={"weight": weight[row.annotator_id]}) for row in rows],
        ties=[row for row in kept if not row.strength],
        gold=gold,
        set_aside=excluded_rows,
        disputes=disputes(disputable, tasks, options),
        agreement=agreed,
        quality=[_with_verdict(annotator, eta, weight, reasons, excluded) for annotator in annotators],
    )


def _with_ties(judgements: Sequence[Judged], tasks: Mapping[str, Task]) -> list[Comparison]:
    rows, ties = comparisons(judgements, tasks)
    return rows + ties


def _split_excluded(
    rows: Sequence[Comparison], excluded: Mapping[str, tuple[str, ...]], adjudicated: set[str]
) -> tuple[list[Comparison], list[SetAside]]:
    """(Kept comparisons, excluded ones with the reasons)."""
    kept: list[Comparison] = []
    excluded_rows: list[SetAside] = []
    for row in rows:
        reasons = excluded.get(row.annotator_id, ())
        if row.task_uid in adjudicated:
            reasons = (*reasons, SENIOR)
        if reasons:
            excluded_rows.append(SetAside(reasons=reasons, comparison=row))
        else:
            kept.append(row)
    return kept, excluded_rows


def _with_verdict(
    annotator: AnnotatorQuality,
    eta: Mapping[str, float],
    weight: Mapping[str, float],
    reasons: Mapping[str, tuple[str, ...]],
    excluded: Mapping[str, tuple[str, ...]],
) -> AnnotatorQuality:
    name = annotator.annotator_id
    return annotator.model_copy(
        update={
            "reliability": eta.get(name),
            "weight": 0.0 if name in excluded else weight.get(name),
            "concerns": tuple(dict.fromkeys((*reasons.get(name, ()), *excluded.get(name, ())))),
            "set_aside": name in excluded,
        }
    )
