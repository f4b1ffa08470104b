"""Stage `evaluate`: comparison of base, SFT and policy on held-out prompts.

With the town's facts the gold judge scores every response. Without a gold judge only the reward model's score is
available, and the report says so: a reward model cannot detect that it was exploited.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.artifacts import write_json
from alignment.config.stages import EvaluationConfig
from alignment.evaluation import EVALUATORS
from alignment.evaluation.bench import Bench, Models, Plot, prompts_that_fit
from alignment.evaluation.judged_responses import Judge
from alignment.evaluation.samples import write_samples
from alignment.journal import Journal
from alignment.models.architecture import longest_sequence
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_causal_model, load_rewards
from alignment.records import Prompt, read_records


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
    models = Models(*(load_causal_model(stage / "model") for stage in (base, sft, policy)))
    tokenizer = load_tokenizer(policy / "model")
    rows = [row for row in read_records(prompts / "prompts.jsonl", Prompt)[0] if row.split == "heldout"]
    fitting = prompts_that_fit(rows, tokenizer, longest_sequence(models.sft), config.max_new_tokens)
    selected = fitting[: config.prompts or None]
    bench = Bench(config, tokenizer, models.sft, load_rewards(reward), judge, seed, selected, policy, corpus, out)
    counts = {"prompts": {"asked": len(selected), "too_long": len(rows) - len(fitting)}}
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
