"""Figures of each annotator: agreement with the others and with gold answers, habits, speed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from alignment.records import Comparison
from labeling.judgements.judgement import Judgement, PairwiseJudgement, RankingJudgement
from labeling.quality.agreement import VALUES, Votes, double_judgements, rate, votes
from labeling.quality.habits import contradictions, hasty, intransitive, left_share, position_correlation, untouched
from labeling.quality.results import NOTHING, AnnotatorQuality, Rate
from labeling.tasks.tasks import Task


def quality(
    judgements: Iterable[Judgement],
    tasks: Mapping[str, Task],
    comparisons: Sequence[Comparison],
    skips: Mapping[str, int],
    gold: Mapping[str, Rate] | None = None,
) -> list[AnnotatorQuality]:
    """The figures of everyone who judged or skipped, by annotator id.

    `comparisons` are those of `judgements`, including ties.
    """
    every = list(judgements)
    by_annotator: dict[str, list[Judgement]] = {annotator: [] for annotator in skips}
    for judgement in every:
        by_annotator.setdefault(judgement.annotator_id, []).append(judgement)
    pair_votes, too_fast = votes(comparisons), hasty(every, tasks)
    agreement, kappa = with_others(pair_votes), kappas(pair_votes)
    return [
        AnnotatorQuality(
            annotator_id=annotator,
            skips=skips.get(annotator, 0),
            agreement=agreement.get(annotator, NOTHING),
            agreement_with_others=agreement.get(annotator, NOTHING).share,
            kappa=kappa.get(annotator),
            gold=(gold or {}).get(annotator, NOTHING),
            **_own_figures(own, tasks, too_fast),
            **dict(zip(("intransitive_share", "triples"), intransitive(pair_votes, annotator), strict=True)),
        )
        for annotator, own in sorted(by_annotator.items())
    ]


def _own_figures(
    own: Sequence[Judgement], tasks: Mapping[str, Task], too_fast: Mapping[str, bool]
) -> dict[str, object]:
    """The figures that depend on the annotator's own judgements alone."""
    left, position, unchanged, contradiction = (
        left_share(own),
        position_correlation(own, tasks),
        untouched(own, tasks),
        contradictions(own),
    )
    times = [judgement.lead_time for judgement in own if judgement.lead_time]
    timed = [too_fast[judgement.annotation_id] for judgement in own if judgement.annotation_id in too_fast]
    return {
        "judgements": len(own),
        "first_position_share": _first_position(own, tasks),
        "left_share": left[0],
        "left_p_value": left[1],
        "position_correlation": position[0],
        "position_p_value": position[1],
        "untouched_share": unchanged[0],
        "untouched_p_value": unchanged[1],
        "contradiction_share": contradiction[0],
        "contradictable": contradiction[1],
        "median_lead_time_seconds": median(times) if times else None,
        "hasty_share": sum(timed) / len(timed) if timed else None,
    }


def with_others(pair_votes: Votes) -> dict[str, Rate]:
    """How often the others named the same winner, by annotator, with a bootstrap interval over prompts."""
    by_annotator: dict[str, list[tuple[str, str, str, bool]]] = defaultdict(list)
    for double in double_judgements(pair_votes):
        by_annotator[double[1]].append(double)
        by_annotator[double[2]].append(double)
    return {annotator: rate(doubles) for annotator, doubles in by_annotator.items()}


def kappas(pair_votes: Votes) -> dict[str, float | None]:
    """Cohen's kappa of each annotator with all others, over the pairs that both judged; ties are a value.

    κ = (p_o − p_e) / (1 − p_e), where p_o is the share of equal double judgements and p_e = Σ_v p(v) q(v) the
    agreement expected from the two marginals (Cohen 1960, eq. 1). None where p_e is 1.
    """
    both: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for values in pair_votes.values():
        for annotator, own in values.items():
            both[annotator].update((own, others) for other, others in values.items() if other != annotator)
    return {annotator: _kappa(counts) for annotator, counts in both.items()}


def _kappa(counts: Counter[tuple[int, int]]) -> float | None:
    total = sum(counts.values())
    if not total:
        return None
    observed = sum(counts[value, value] for value in VALUES) / total
    rows, columns = ([sum(n for pair, n in counts.items() if pair[i] == value) for value in VALUES] for i in (0, 1))
    expected = sum(a * b for a, b in zip(rows, columns, strict=True)) / total**2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def _first_position(judgements: Sequence[Judgement], tasks: Mapping[str, Task]) -> float | None:
    wins = expected = 0.0
    for judgement in judgements:
        shown = tasks[judgement.task_uid].shown
        if isinstance(judgement, RankingJudgement) and judgement.ranking and 1 not in judgement.ties:
            wins += judgement.ranking[0] == shown[0]
            expected += 1 / len(shown)
        elif isinstance(judgement, PairwiseJudgement) and judgement.preference:
            wins += judgement.preference > 0
            expected += 1 / 2
    return wins / expected if expected else None
