"""Accuracy of annotators on gold tasks, whose answers are known."""

from collections import defaultdict
from collections.abc import Sequence

from scipy.stats import binomtest

from alignment.records import Comparison
from labeling.quality.results import Rate
from labeling.tasks.gold import Answers


def gold_accuracy(rows: Sequence[Comparison], answers: Answers) -> dict[str, Rate]:
    """Each annotator's accuracy on the known pairs; a tie counts as wrong. `rows` are of gold tasks only."""
    known = {pair for pairs in answers.values() for pair in pairs}
    by_annotator: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for row in rows:
        pair = (row.chosen.id, row.rejected.id)
        if pair in known or pair[::-1] in known:
            by_annotator[row.annotator_id].append((row.prompt.id, row.strength > 0 and pair in known))
    return {annotator: _share_right(answered) for annotator, answered in by_annotator.items()}


def _share_right(answered: Sequence[tuple[str, bool]]) -> Rate:
    """The share and Wilson's interval (1927, eq. 4) with prompts as trials: pairs of a prompt are dependent, and
    with one or two prompts a bootstrap has no spread."""
    share = sum(right for _, right in answered) / len(answered)
    prompts = len({prompt for prompt, _ in answered})
    interval = binomtest(round(share * prompts), prompts).proportion_ci(method="wilson")
    return Rate(count=len(answered), share=share, low=float(interval.low), high=float(interval.high))
