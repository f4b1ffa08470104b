"""Win rate of the policy against SFT."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.evaluation.judged_responses import JudgedResponse
from alignment.statistics import wilson_interval

TIE_MARGIN = 0.02  # gold scores closer than this do not decide who is better


def measure_win_rate(bench: Bench, models: Models) -> Figures:
    """`win_rate_vs_sft`: the share of decided prompts on which the policy is better, with its interval."""
    return Figures({"win_rate_vs_sft": win_rate(bench.responses(models.policy), bench.responses(models.sft))})


def win_rate(ours: Sequence[JudgedResponse], theirs: Sequence[JudgedResponse]) -> dict[str, float | str]:
    """Share of decided prompts on which ours is better, with Wilson's 95 % interval; by gold score, else by reward.

    A prompt counts once, by the mean over its samples, and is decided when the means differ by more than a margin.
    """
    by, margin = ("reward", 0.0) if ours[0].gold is None else ("score", TIE_MARGIN)
    differences: dict[str, list[float]] = defaultdict(list)
    for a, b in zip(ours, theirs, strict=True):
        differences[a.prompt_id].append(a.figures()[by] - b.figures()[by])
    means = [fmean(of_prompt) for of_prompt in differences.values()]
    decided = [mean for mean in means if abs(mean) > margin]
    wins = sum(d > 0 for d in decided)
    low, high = wilson_interval(wins, len(decided))
    return {
        "rate": wins / len(decided) if decided else 0.5,
        "low": low,
        "high": high,
        "decided": len(decided),
        "prompts": len(means),
        "by": by,
    }
