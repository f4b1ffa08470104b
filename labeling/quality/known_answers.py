"""Accuracy of annotators on gold tasks, whose answers are known."""

from collections import defaultdict
from collections.abc import Sequence

from scipy.stats import binomtest

from alignment.records import Comparison
from labeling.quality.results import Rate
from labeling.tasks.gold import Answers


def gold_accuracy(rows: Sequence[Comparison], answers: Answers) -> dict[str, Rate]:
    """Each annotator's accuracy on the known pairs; a tie counts as wrong. `rows` are those of gold tasks only."""
    known = {pair for pairs in answers.values() for pair in pairs}
    by_annotator: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for row in rows:
        pair = (row.chosen.id, row.rejected.id)
        if pair in known or pair[::-1] in known:
            by_annotator[row.annotator_id].append((row.prompt.id, row.strength > 0 and pair in known))
    return {annotator: _accuracy(outcomes) for annotator, outcomes in by_annotator.items()}


def _accuracy(outcomes: Sequence[tuple[str, bool]]) -> Rate:
    """The accuracy with Wilson's interval (1927, eq. 4), with prompts as trials.

    The pairs of one prompt are dependent, and with one or two prompts a bootstrap interval would have no width.
    """
    share = sum(correct for _, correct in outcomes) / len(outcomes)
    prompts = len({prompt for prompt, _ in outcomes})
    interval = binomtest(round(share * prompts), prompts).proportion_ci(method="wilson")
    return Rate(count=len(outcomes), share=share, low=float(interval.low), high=float(interval.high))
