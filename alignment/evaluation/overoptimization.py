"""Gold and proxy reward as functions of the distance from SFT: the laws of Gao et al. 2023, and best-of-n sampling.

d = √KL[π ‖ π_SFT], in nats½. Rewards are relative to SFT's: R(0) = 0. Pure functions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fit:
    """R(d) = d (α − β log d) by least squares; `residual` is the root mean square error of the fit.

    `peak` is the distance where R is highest, e^(α/β − 1); None if R has no peak (β ≤ 0).
    """

    alpha: float
    beta: float
    residual: float
    points: int

    def at(self, distance: float) -> float:
        """R(d); 0 at SFT itself."""
        return distance * (self.alpha - self.beta * math.log(distance)) if distance > 0 else 0.0

    @property
    def peak(self) -> float | None:
        if self.beta <= 0 or self.alpha / self.beta > 5:  # beyond any policy's distance
            return None
        return math.exp(self.alpha / self.beta - 1)


def fit_rl(kl: Sequence[float], rewards: Sequence[float]) -> Fit | None:
    """The law of RL (Gao et al. 2023, section 1), R(d) = d (α − β log d), linear in α and β.

    `rewards` are relative to SFT's. Points at or below KL 0 carry no information (R is 0 there) and are skipped; None
    with fewer than three others, which two parameters would fit exactly.
    """
    known = [(math.sqrt(distance), reward) for distance, reward in zip(kl, rewards, strict=True) if distance > 0]
    if len(known) < 3:
        return None
    d, r = torch.tensor(known, dtype=torch.float64).unbind(-1)
    columns = torch.stack([d, -d * d.log()], dim=-1)
    solution = torch.linalg.lstsq(columns, r.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    left = float((columns @ solution - r).pow(2).mean().sqrt())
    return Fit(float(solution[0]), float(solution[1]), left, len(known))


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to what it samples from, log n − (n − 1)/n (Stiennon 2020, appendix G.3).

    For any reward, if no two responses are equal; otherwise an upper bound.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_mean(proxy: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean value of the response with the highest proxy of n, over all ways to take n of the N that were sampled.

    Σ_i C(i−1, n−1) / C(N, n) · value_(i), with responses in rising order of the proxy, i = 1 … N (Nakano 2021,
    appendix I): an unbiased estimate that uses every sample. With N = n it is the value of the best response.
    """
    if not 1 <= n <= len(proxy):
        raise ValueError(f"best of {n} cannot be taken from {len(proxy)} responses")
    order = sorted(range(len(proxy)), key=lambda i: proxy[i])
    ways = math.comb(len(proxy), n)
    return sum(math.comb(rank, n - 1) / ways * values[i] for rank, i in enumerate(order))
