"""Best-of-n sampling from SFT by the reward model, without training: a baseline for the gold curve."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from alignment.evaluation.bench import Bench, Figures, Models
from alignment.evaluation.overoptimization import best_of_n_kl, best_of_n_mean
from alignment.evaluation.plots import plot_gold_curve

Point = dict[str, float]


def measure_best_of_n(bench: Bench, models: Models) -> Figures:
    """`best_of_n`: a point for each n of the config, drawn in the plot of the gold curve."""
    points = best_of_n_points(bench, bench.config.best_of_n)
    metrics = {f"best_of_{point['n']:.0f}": point for point in points}
    return Figures({"best_of_n": points}, metrics, {"gold_curve": plot_gold_curve} if points else {})


def best_of_n_points(bench: Bench, counts: Sequence[int]) -> list[Point]:
    """Reward (the proxy), gold score and KL of SFT's best of n responses, for each n in rising order.

    The largest n is sampled once, and every n is estimated from all responses.
    """
    if not counts:
        return []
    responses = bench.sample(bench.reference, bench.curve_prompts, max(counts))
    by_prompt = [
        [response.figures() for response in group]
        for _, group in groupby(responses, key=lambda response: response.prompt_id)
    ]
    names = [name for name in ("reward", "score") if name in by_prompt[0][0]]
    return [
        {"n": float(n), "kl": best_of_n_kl(n)} | {name: _mean_of_best(by_prompt, name, n) for name in names}
        for n in sorted(counts)
    ]


def _mean_of_best(by_prompt: Sequence[Sequence[Point]], name: str, n: int) -> float:
    """Over prompts, the mean value of the response with the highest reward of n."""
    return fmean(
        best_of_n_mean([figures["reward"] for figures in group], [figures[name] for figures in group], n)
        for group in by_prompt
    )
