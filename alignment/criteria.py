"""The criteria of the gold score: a single table, from which judge, simulated annotators, reports and figures follow.

To add one, add a row here, its scoring function to `alignment.town.judge.SCORING`, and how annotators are asked for it
to `labeling/guidelines`. Guidelines of a team may have other criteria, which people rate and no judge scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One criterion.

    `name` is used in rows, files and metrics. `weight` is the share in the gold score and `annotator_weight` that in
    the preferences of an average simulated annotator; both are relative to their sum over all criteria.
    """

    name: str
    weight: float
    annotator_weight: float


CRITERIA = (
    Criterion(name="helpful", weight=0.34, annotator_weight=0.8),
    Criterion(name="truthful", weight=0.33, annotator_weight=1.2),
    Criterion(name="harmless", weight=0.33, annotator_weight=1.0),
)
CRITERION_NAMES = tuple(criterion.name for criterion in CRITERIA)
GOLD_FIGURES = (*CRITERION_NAMES, "score")


def gold_score(scores: Mapping[str, float]) -> float:
    """Σ w_c s_c / Σ w_c over the criteria c. `scores` are in [0, 1] by criterion; so is the result."""
    total = sum(criterion.weight for criterion in CRITERIA)
    return sum(criterion.weight * scores[criterion.name] for criterion in CRITERIA) / total
