"""Gold score against reward (the proxy) over the snapshots of PPO.

The proxy rises as long as the policy is trained on it; the scaling laws of Gao et al. 2023 describe where the gold
score peaks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.distributed.devices import frozen_dtype
from alignment.evaluation.bench import Bench, Figures, Models
from alignment.evaluation.judged_responses import means
from alignment.evaluation.overoptimization import fit_rl
from alignment.evaluation.plots import plot_gold_curve
from alignment.models.scalar import load_causal_model

Point = dict[str, float]


def measure_gold_curve(bench: Bench, models: Models) -> Figures:
    """`curve`, `curve_fit` and `chosen_step`; the fits are metrics."""
    curve = snapshot_points(bench)
    fits = curve_fits(curve)
    report = {"curve": curve, "curve_fit": fits, "chosen_step": chosen_step(bench.policy)}
    return Figures(report, metrics={"curve_fit": fits}, plots={"gold_curve": plot_gold_curve} if curve else {})


def snapshot_points(bench: Bench) -> list[Point]:
    """Means over each snapshot's responses, by step; empty if the method keeps no snapshots."""
    points = []
    for step in _read(bench.policy / "snapshots.json", []):
        model = load_causal_model(bench.policy / "snapshots" / f"step-{step:05d}", frozen_dtype())
        responses = bench.sample(model, bench.curve_prompts, bench.config.samples_per_prompt)
        points.append({"step": float(step)} | means(responses))
    return points


def chosen_step(policy: Path) -> int | None:
    """The step of the snapshot that was selected as the policy; None without a selection."""
    selection = _read(policy / "selection.json", None)
    return None if selection is None else int(selection["step"])


def _read(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else otherwise


def curve_fits(points: Sequence[Mapping[str, float]]) -> dict[str, Point]:
    """The law R(d) = d (α − β log d) for the proxy and, with a judge, for the gold score.

    Rewards are relative to those of the first point, which must be SFT itself (step 0); `start` is its reward.
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
