"""The distance to the reference policy: estimators from sampled tokens, and its coefficient."""

import torch
from torch import Tensor


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: str) -> Tensor:
    """KL[π ‖ π_ref] for each token sampled from π (Schulman 2020, "Approximating KL divergence").

    with r = π_ref(a) / π(a):        k1 = −log r        k3 = r − 1 − log r

    The mean of both is the KL; k1 may be negative, k3 is not and varies less. Shapes: (...), (...) -> (...).
    """
    log_ratio = reference_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    assert estimator == "k3", estimator
    return torch.expm1(log_ratio) - log_ratio


def adapted_kl_coef(kl_coef: float, kl: float, target: float | None, gain: float) -> float:
    """The coefficient of the next step (Ziegler 2019, section 2.2); constant without a target.

    e = clip( (KL − target) / target, −0.2, 0.2 )        β' = β (1 + K_β e)
    """
    if target is None:
        return kl_coef
    error = min(max((kl - target) / target, -0.2), 0.2)
    return kl_coef * (1 + gain * error)
