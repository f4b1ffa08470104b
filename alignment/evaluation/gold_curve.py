"""Gold against proxy: what the reward model and the judge say of a policy on its way, and of best-of-n sampling.

The proxy rises as long as it is followed; where the judge's score turns is what the laws of Gao et al. 2023 describe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment.evaluation.judged_responses import Answer, Bench, answer_all, summary
from alignment.evaluation.overoptimization import best_of_n_kl, best_of_n_mean, fit_rl
from alignment.models.scalar import load_causal_model
from alignment.records import Prompt

Point = dict[str, float]


def measure_curve(bench: Bench, policy: Path, rows: Sequence[Prompt]) -> list[Point]:
    """Proxy and gold score of each snapshot of PPO, over its KL to SFT."""
    points = []
    for step in _read(policy / "snapshots.json", []):
        model = load_causal_model(policy / "snapshots" / f"step-{step:05d}")
        points.append({"step": float(step)} | summary(answer_all(bench, model, rows)))
    return points


def chosen_step(policy: Path) -> int | None:
    """The snapshot that was chosen to be the policy; None where the last one was simply taken."""
    selection = _read(policy / "selection.json", None)
    return None if selection is None else int(selection["step"])


def _read(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else otherwise


def curve_fits(points: Sequence[Mapping[str, float]]) -> dict[str, Point]:
    """The law R(d) = d (α − β log d) for the proxy and, where there is a judge, for the gold score.

    Rewards count from those of the first point, which must be SFT itself (step 0); `start` keeps them.
    """
    if not points or points[0]["step"] != 0:
        return {}
    fits = {}
    for name, key in (("proxy", "reward"), ("gold", "score")):
        moved = [point for point in points[1:] if key in point]
        start = points[0].get(key, 0.0)
        fit = fit_rl([point["kl"] for point in moved], [point[key] - start for point in moved])
        if fit is not None:
            peak = {} if fit.peak is None else {"peak_distance": fit.peak}
            fits[name] = {k: float(v) for k, v in asdict(fit).items()} | {"start": start} | peak
    return fits


def measure_best_of_n(bench: Bench, rows: Sequence[Prompt], counts: Sequence[int]) -> list[Point]:
    """Best-of-n sampling from SFT by the reward model, without training: proxy, gold score and KL for each n.

    As many responses as the largest n are sampled once, and every n is estimated from all of them.
    """
    if not counts:
        return []
    config = bench.config.model_copy(update={"samples_per_prompt": max(counts)})
    answers = answer_all(replace(bench, config=config), bench.sft, rows)
    by_prompt = [list(group) for _, group in groupby(answers, key=lambda answer: answer.prompt_id)]
    names = ["reward"] + (["score"] if answers[0].score is not None else [])
    return [
        {"n": float(n), "kl": best_of_n_kl(n)} | {name: _mean_of_best(by_prompt, name, n) for name in names}
        for n in sorted(counts)
    ]


def _mean_of_best(by_prompt: Sequence[Sequence[Answer]], name: str, n: int) -> float:
    """Over prompts, the mean value of the response that the proxy likes best of n."""
    return fmean(
        best_of_n_mean([answer.reward for answer in group], [getattr(answer, name) for answer in group], n)
        for group in by_prompt
    )
