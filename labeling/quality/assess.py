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
    """Weighted comparisons, those that were excluded, agreement, and the figures of annotators.

    `ties` have strength 0. `gold` are comparisons of gold tasks: never for training. `agreement` is over the
    comparisons that are kept, `quality` covers every annotator.
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

    `answers` are those of gold tasks. Judgements of `senior`, from the second project, replace all others of their
    task and are not screened.
    """
    answers = answers or {}
    ordinary = [one for one in judgements if one.task_uid not in answers]
    gold = _all([one for one in judgements if one.task_uid in answers], tasks)
    all_rows = _all(ordinary, tasks)
    agreed, eta = agreement(all_rows), reliabilities(all_rows)
    crew = quality(ordinary, tasks, all_rows, skips, gold_accuracy(gold, answers))
    reasons = concerns(crew, agreed, options.screening)
    aside = set_aside(reasons, [one.annotator_id for one in crew], options.screening)
    settled = {one.task_uid for one in senior}
    handed_on, put_aside = _split_excluded(all_rows, aside, settled)
    if aside or senior:
        handed_on += _all(senior, tasks)
        agreed = agreement(handed_on)
        eta |= reliabilities(handed_on)
    rows = [row for row in handed_on if row.strength]
    weight = weights(rows, eta)
    crew = [_with_verdict(one, eta, weight, reasons, aside) for one in crew]
    return Assessment(
        comparisons=[row.model_copy(update={"weight": weight[row.annotator_id]}) for row in rows],
        ties=[row for row in handed_on if not row.strength],
        gold=gold,
        set_aside=put_aside,
        disputes=disputes(
            [one for one in ordinary if one.annotator_id not in aside and one.task_uid not in settled], tasks, options
        ),
        agreement=agreed,
        quality=crew,
    )


def _all(judgements: Sequence[Judged], tasks: Mapping[str, Task]) -> list[Comparison]:
    rows, ties = comparisons(judgements, tasks)
    return rows + ties


def _split_excluded(
    rows: Sequence[Comparison], aside: Mapping[str, tuple[str, ...]], settled: set[str]
) -> tuple[list[Comparison], list[SetAside]]:
    """The comparisons that are kept, and the others with the reasons."""
    kept: list[Comparison] = []
    out: list[SetAside] = []
    for row in rows:
        reasons = aside.get(row.annotator_id, ())
        if row.task_uid in settled:
            reasons = (*reasons, SENIOR)
        if reasons:
            out.append(SetAside(reasons=reasons, comparison=row))
        else:
            kept.append(row)
    return kept, out


def _with_verdict(
    annotator: AnnotatorQuality,
    eta: Mapping[str, float],
    weight: Mapping[str, float],
    reasons: Mapping[str, tuple[str, ...]],
    aside: Mapping[str, tuple[str, ...]],
) -> AnnotatorQuality:
    name = annotator.annotator_id
    return annotator.model_copy(
        update={
            "reliability": eta.get(name),
            "weight": 0.0 if name in aside else weight.get(name),
            "concerns": tuple(dict.fromkeys((*reasons.get(name, ()), *aside.get(name, ())))),
            "set_aside": name in aside,
        }
    )
