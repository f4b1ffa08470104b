"""Intervals of shares and means, and the win rate of one model against another, without torch."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

Z95 = 1.959963984540054
TIE_MARGIN = 0.02  # gold scores closer than this do not decide who is better


def wilson_interval(successes: float, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, eq. 4): (0, 1) without trials.

    centre = (p + z²/2n) / (1 + z²/n), half-width = z/(1 + z²/n) · √(p(1−p)/n + z²/4n²)
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    denominator = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = Z95) -> tuple[float, float]:
    """The interval mean ± z · s/√n of a mean; unbounded for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = z * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def win_rate(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]], margin: float
) -> dict[str, float]:
    """Share of decided prompts on which ours is better, with Wilson's 95 % interval; scores are by prompt.

    A prompt counts once, by the mean over its responses, and is decided when the means differ by more than `margin`.
    """
    differences = [fmean(scores) - fmean(theirs[prompt]) for prompt, scores in ours.items() if prompt in theirs]
    decided = [difference for difference in differences if abs(difference) > margin]
    wins = sum(difference > 0 for difference in decided)
    low, high = wilson_interval(wins, len(decided))
    rate = wins / len(decided) if decided else 0.5
    return {"rate": rate, "low": low, "high": high, "decided": len(decided), "prompts": len(differences)}
