"""Losses on preferences between responses: pure functions on scores."""

import torch
from torch import Tensor
from torch.nn import functional


def bradley_terry_loss(
    scores: Tensor,
    pairs: Tensor,
    *,
    weights: Tensor | None = None,
    margins: Tensor | None = None,
    ties: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of choices under P(i beats j) = σ(s_i − s_j) (Bradley & Terry 1952; Ouyang 2022, eq. 1).

    loss = −Σ w [ (1 − tie/2) log σ(Δ) + (tie/2) log σ(−Δ) ] / Σ w,   Δ = s_chosen − s_rejected − margin

    A tie counts as half a win for each side, and has no margin. `margins` as in Llama 2 (Touvron 2023, eq. 2).

    Shapes: scores (n,); pairs (m, 2), each row (chosen, rejected) as indices into scores; weights, margins (m,);
    ties (m,) bool. Returns a scalar. Raises ValueError when the weights do not sum to a positive number.
    """
    tie = torch.zeros(len(pairs), dtype=scores.dtype, device=scores.device) if ties is None else ties.to(scores)
    weight = torch.ones_like(tie) if weights is None else weights.to(scores)
    if not float(weight.sum()) > 0:
        raise ValueError("the weights of the pairs sum to 0: there is nothing to learn from")
    difference = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    if margins is not None:
        difference = difference - margins.to(scores) * (1 - tie)
    log_likelihood = (1 - tie / 2) * functional.logsigmoid(difference) + tie / 2 * functional.logsigmoid(-difference)
    return -(weight * log_likelihood).sum() / weight.sum()
