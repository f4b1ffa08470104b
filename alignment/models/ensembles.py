"""Ensembles of reward models: the combination of members' scores, and their disagreement. Pure functions.

Where members that were trained on the same judgements disagree, none is reliable, and a policy that maximizes a single
member moves there first. Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization", section 3,
compares these ways of combining them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field
from torch import Tensor

from alignment.config.base import Combine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_MEMBERS = 100


class EnsembleFile(BaseModel):
    """What `ensemble.json` says."""

    members: int = Field(ge=1, le=MOST_MEMBERS)
    combine: Combine
    combine_coef: float = Field(allow_inf_nan=False)


@dataclass(frozen=True)
class Ensemble:
    """Reward models with scores on the same scale, usable wherever a single reward model is.

    Their score is the mean, the lowest, or mean − coef · variance: see `combined`.
    """

    models: "Sequence[PreTrainedModel]"
    combine: Combine = "mean"
    coef: float = 0.5


def combined(scores: Tensor, combine: Combine, coef: float) -> Tensor:
    """The score of an ensemble of k members (Coste et al. 2024, section 3). Shapes: (k, B) -> (B,).

    mean:        R = 1/k Σ r_i
    worst:       R = min_i r_i
    uncertainty: R = 1/k Σ r_i − λ · 1/k Σ (r_i − mean)²        λ is `coef`
    """
    if combine == "worst":
        return scores.min(0).values
    mean = scores.mean(0)
    if combine == "mean":
        return mean
    assert combine == "uncertainty", combine
    return mean - coef * scores.var(0, correction=0)


def spread(scores: Tensor) -> Tensor:
    """Standard deviation over the members, response by response. Shapes: (k, B) -> (B,)."""
    return scores.std(0, correction=0)
