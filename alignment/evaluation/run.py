"""Stage `evaluate`: base, SFT and policy side by side on held-out prompts.

With the town's facts the gold judge scores every response. Without a gold judge the reward model's score is all there
is, and the report says so: a reward model cannot tell whether it was fooled.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment.artifacts import write_json
from alignment.config.stages import EvaluationConfig
from alignment.evaluation.gold_curve import chosen_step, curve_fits, measure_best_of_n, measure_curve
from alignment.evaluation.judged_responses import Answer, Bench, Judge, answer_all, fitting, summary
from alignment.journal import Journal
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_causal_model, load_rewards
from alignment.plots import gold_curve, kinds_chart
from alignment.records import Prompt, read_records
from alignment.statistics import wilson_interval
from alignment.training.pretrain import heldout_loss, pack

TIE_MARGIN = 0.02  # gold scores closer than this do not decide who is better


def evaluate(
    config: EvaluationConfig,
    out: Path,
    journal: Journal,
    *,
    seed: int,
    base: Path,
    sft: Path,
    policy: Path,
    reward: Path,
    prompts: Path,
    corpus: Path,
    judge: Judge | None = None,
) -> dict[str, float]:
    """Write `evaluation.json`, `samples.jsonl`, `samples.md` and the figures; return the headline figures."""
    tokenizer = load_tokenizer(policy / "model")
    bench = Bench(config, tokenizer, load_causal_model(sft / "model"), load_rewards(reward), judge, seed)
    rows = [row for row in read_records(prompts / "prompts.jsonl", Prompt)[0] if row.split == "heldout"]
    within = fitting(rows, bench)
    too_long, rows = len(rows) - len(within), within[: config.prompts or None]
    models = {
        name: load_causal_model(path / "model") for name, path in (("base", base), ("sft", sft), ("policy", policy))
    }
    answers = {name: answer_all(bench, model, rows) for name, model in models.items()}
    curve = measure_curve(bench, policy, rows[: config.curve_prompts])
    heldout = pack(corpus / "heldout.jsonl", tokenizer, int(bench.sft.config.max_position_embeddings)).rows
    report: dict[str, Any] = {
        "models": {name: summary(given) for name, given in answers.items()},
        "by_kind": {name: by_kind(given) for name, given in answers.items()},
        "win_rate_vs_sft": win_rate(answers["policy"], answers["sft"]),
        "kl_to_sft": fmean(answer.kl for answer in answers["policy"]),
        "tax": {name: heldout_loss(model, heldout) for name, model in models.items()},
        "curve": curve,
        "curve_fit": curve_fits(curve),
        "chosen_step": chosen_step(policy),
        "best_of_n": measure_best_of_n(bench, rows[: config.curve_prompts], config.best_of_n),
        "judge": "gold" if judge else "reward model",
        "prompts": {"asked": len(rows), "too_long": too_long},
    }
    write_json(out / "evaluation.json", report)
    write_samples(out, answers)
    draw_figures(report, journal)
    headlines = ("models", "win_rate_vs_sft", "tax", "kl_to_sft", "prompts", "curve_fit")
    best = {f"best_of_{point['n']:.0f}": point for point in report["best_of_n"]}
    figures = flatten({key: report[key] for key in headlines} | best)
    journal.log(figures, step=0)
    return figures


def by_kind(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """The same for each kind of prompt."""
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[answer.kind or "all"].append(answer)
    return {kind: summary(group) | {"count": float(len(group))} for kind, group in sorted(groups.items())}


def win_rate(ours: Sequence[Answer], theirs: Sequence[Answer]) -> dict[str, Any]:
    """Share of decided prompts on which ours is better, with Wilson's 95 % interval; by gold score, else by reward.

    A prompt counts once, by the mean over its samples, and is decided when the means differ by more than a margin.
    """
    by = "score" if ours[0].score is not None else "reward"
    margin = TIE_MARGIN if by == "score" else 0.0
    differences: dict[str, list[float]] = defaultdict(list)
    for a, b in zip(ours, theirs, strict=True):
        differences[a.prompt_id].append(getattr(a, by) - getattr(b, by))
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


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as `a.b.c: number`; words are left out."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[prefix + name] = float(value)
    return flat


def write_samples(out: Path, answers: Mapping[str, Sequence[Answer]], shown: int = 40) -> None:
    """All answers as JSONL, and some side by side as a table for people."""
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for name, given in answers.items():
            file.writelines(json.dumps({"model": name, **asdict(answer)}) + "\n" for answer in given)
    lines = ["| kind | prompt | " + " | ".join(answers) + " |", "|---" * (2 + len(answers)) + "|"]
    for same in list(zip(*answers.values(), strict=True))[:shown]:
        cells = [
            f"{cell(a.response)}<br>{a.reward:+.2f}" + ("" if a.score is None else f" · gold {a.score:.2f}")
            for a in same
        ]
        lines.append(f"| {cell(same[0].kind)} | {cell(same[0].prompt)} | " + " | ".join(cells) + " |")
    (out / "samples.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(text: str) -> str:
    """Text that cannot break out of a table cell, nor become HTML, a link, a picture or code."""
    shown = text.replace("&", "&amp;")
    for mark in "<>|[]`":
        shown = shown.replace(mark, f"&#{ord(mark)};")
    return "<br>".join(shown.splitlines())


def draw_figures(report: Mapping[str, Any], journal: Journal) -> None:
    """The gold curve, and the criteria by model."""
    if report["curve"] or report["best_of_n"]:
        parts = (report["curve"], report["curve_fit"], report["best_of_n"], report["chosen_step"])
        journal.figure("gold_curve", gold_curve(*parts))
    if report["judge"] == "gold":
        journal.figure("criteria", kinds_chart(report["models"]))
