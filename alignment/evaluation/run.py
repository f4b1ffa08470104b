"""Stage `evaluate`: comparison of base, SFT and policy on held-out prompts.

With the town's facts the gold judge scores every response. Without a gold judge only the reward model's score is
available, and the report says so: a reward model cannot detect that it was exploited.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.artifacts import write_json
from alignment.config.stages import EvaluationConfig
from alignment.data.prompts import encode_prompts
from alignment.distributed.devices import frozen_dtype
from alignment.evaluation import EVALUATORS
from alignment.evaluation.bench import Bench, Models, Plot
from alignment.evaluation.judged_responses import Judge
from alignment.evaluation.samples import write_samples
from alignment.journal import Journal
from alignment.models.architecture import longest_sequence
from alignment.models.chat import load_chat
from alignment.models.encoding import put_aside
from alignment.models.scalar import load_causal_model, load_rewards


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
    """Run all evaluators. Writes `evaluation.json`, `samples.jsonl`, `samples.md` and the figures; returns metrics."""
    models = Models(*(load_causal_model(stage / "model", frozen_dtype()) for stage in (base, sft, policy)))
    chat = load_chat(policy / "model")
    context = longest_sequence(models.sft)
    encoded = encode_prompts(prompts, "heldout", chat, context, config.max_new_tokens, "evaluation.max_new_tokens")
    put_aside(out, encoded)
    selected = [prompt for prompt, _ in encoded.rows][: config.prompts or None]
    bench = Bench(config, chat, models.sft, load_rewards(reward), judge, seed, selected, policy, corpus, out)
    counts = {"prompts": {"asked": len(selected), "too_long": encoded.too_long}}
    report: dict[str, Any] = {"judge": "gold" if judge else "reward model", **counts}
    metrics, plots = flatten(counts), dict[str, Plot]()
    for evaluator in EVALUATORS:
        figures = evaluator(bench, models)
        add(report, figures.report)
        add(metrics, flatten(figures.report if figures.metrics is None else figures.metrics))
        plots |= figures.plots
    write_json(out / "evaluation.json", report)
    write_samples(out, {name: bench.responses(model) for name, model in models.by_name().items()})
    for name, plot in plots.items():
        journal.figure(name, plot(report))
    journal.log(metrics, step=0)
    return metrics


def add(entries: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Add an evaluator's entries. Raises ValueError for a name that another evaluator uses."""
    taken = sorted(entries.keys() & new.keys())
    if taken:
        raise ValueError(f"two evaluators report {', '.join(taken)}: rename the entries of either")
    entries |= new


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics as `a.b.c: number`; lists, strings and null are omitted."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[prefix + name] = float(value)
    return flat
