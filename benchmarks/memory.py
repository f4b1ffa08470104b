"""The peak memory of stages with a real model on real data, beside what `--plan` predicts.

    python -m benchmarks.memory --checkpoint SmolLM2-135M-Instruct --data ../shared/data --out .bench/memory

Every stage runs a few steps in a process of its own. The data are those of the recipe `hh`: demonstrations of
self-instruct, comparisons of hh-rlhf, and the text of tinyshakespeare.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from alignment.config.stages import (
    ComparisonsConfig,
    CorpusConfig,
    DemonstrationsConfig,
    PromptsConfig,
    RowSource,
    TextSource,
)
from alignment.footprint import peaks
from alignment.footprint.model import Footprint, shape_of
from alignment.journal import Journal
from alignment.models.checkpoint_files import count_parameters
from alignment.rules.options import AlignOptions
from alignment.stage import Sizes
from alignment.stages import STAGES

LENGTH, NEW_TOKENS = 384, 32
LORA = {"lora_rank": 16}
SFT = {"epochs": 0.25, "batch_size": 16, "max_length_tokens": LENGTH, "learning_rate": 1e-4}
PAIRS = {"epochs": 0.1, "batch_size": 8, "max_length_tokens": LENGTH}
REWARD = {"epochs": 0.2, "batch_prompts": 8, "max_length_tokens": LENGTH}
PPO = {"steps": 1, "batch_size": 8, "minibatch_size": 8, "epochs": 1, "max_new_tokens": NEW_TOKENS}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain, nothing trained": ("pretrain", {"epochs": 0}),
    "sft": ("sft", SFT),
    "sft, adapter": ("sft", SFT | LORA),
    "sft, adapter, recomputed": ("sft", SFT | LORA | {"gradient_checkpointing": True}),
    "reward": ("reward", REWARD),
    "reward, adapter": ("reward", REWARD | LORA),
    "reward, adapter, likelihood": ("reward", REWARD | LORA | {"likelihood": True, "lm_coef": 0.1}),
    "dpo": ("dpo", PAIRS),
    "dpo, adapter": ("dpo", PAIRS | LORA),
    "kto, adapter": ("kto", PAIRS | LORA),
    "ppo, lora": ("ppo", PPO | {"layout": "lora"}),
}
DIRECTORIES = {"sft": "base", "reward": "out/reward-adapter"}  # of inputs with another name


def prepare(checkpoint: Path, data: Path, work: Path) -> None:
    """The inputs of all stages: short files of public data, and the checkpoint as every model."""
    pairs = RowSource(path=str(data / "hh-rlhf-harmless-test/harmless-base_test.jsonl.gz"), format="hh", limit=80)
    tasks = RowSource(
        path=str(data / "self-instruct/seed_tasks.jsonl"),
        format="template",
        prompt="{instruction}\n{instances[0][input]}",
        completion="{instances[0][output]}",
        limit=60,
    )
    text = TextSource(path=str(data / "tinyshakespeare/input.txt"))
    configs = {
        "demonstrations": DemonstrationsConfig(sources=(tasks,), max_rejected_share=1),
        "prompts": PromptsConfig(sources=(pairs,), max_rejected_share=1),
        "comparisons": ComparisonsConfig(sources=(pairs,), max_rejected_share=1),
        "corpus": CorpusConfig(sources=(text,)),
    }
    stages = {stage.name: stage for stage in STAGES}
    for name, config in configs.items():
        stages[name].run(config, work / name, Journal(work / name), seed=0)
    (work / "base").mkdir(exist_ok=True)
    if not (work / "base" / "model").exists():
        (work / "base" / "model").symlink_to(checkpoint.resolve())


def measure(case: str, checkpoint: Path, work: Path) -> None:
    """Run a case in this process and print its figures as JSON."""
    name, options = CASES[case]
    stage = next(stage for stage in STAGES if stage.name == name)
    config = stage.config.model_validate(options | ({"checkpoint": str(checkpoint)} if name == "pretrain" else {}))
    inputs: dict[str, Any] = {needed: work / DIRECTORIES.get(needed, needed) for needed in stage.inputs}
    if "reward" in stage.inputs:
        inputs["align"] = AlignOptions()
    out = work / "out" / case.replace(", ", "-").replace(" ", "-")
    started, cpu = time.perf_counter(), time.process_time()
    stage.run(config, out, Journal(out), seed=0, **inputs)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


def predicted(case: str, checkpoint: Path) -> int:
    """The bytes that `--plan` would show."""
    from transformers import AutoConfig

    name, options = CASES[case]
    stage = next(stage for stage in STAGES if stage.name == name)
    assert stage.memory is not None, f"{name} predicts no memory"
    config = stage.config.model_validate(options | ({"checkpoint": str(checkpoint)} if name == "pretrain" else {}))
    model = Footprint(
        count_parameters(checkpoint), shape_of(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False))
    )
    return stage.memory(config, model, Sizes(conversation_tokens=LENGTH, context_length=2048)) + peaks.LIBRARIES


def table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Predicted and measured peaks, with the time of the stage."""
    shown = Table(title="peak resident memory of a stage's process")
    for column in ("stage", "predicted GiB", "measured GiB", "predicted / measured", "seconds", "CPU seconds"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for case, row in rows.items():
        gigabytes = [f"{row[name] / 2**30:.2f}" for name in ("predicted", "peak")]
        ratio = f"{row['predicted'] / row['peak']:.2f}"
        shown.add_row(case, *gigabytes, ratio, f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}")
    return shown


def main(
    checkpoint: Annotated[Path, typer.Option(help="directory of a causal language model")],
    data: Annotated[Path, typer.Option(help="directory of the data of recipe hh")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="directory for inputs and outputs")] = Path(".bench/memory"),
    case: Annotated[list[str] | None, typer.Option(help="a case, such as 'sft, adapter'; all if none is named")] = None,
    here: Annotated[bool, typer.Option(help="run a single case in this process, with inputs that exist")] = False,
) -> None:
    """Measure each case in a process of its own, and print the table."""
    names = case or list(CASES)
    if here:
        measure(names[0], checkpoint, out)
        return
    prepare(checkpoint, data, out)
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.memory", "--here", "--case", name, "--out", str(out)]
        done = subprocess.run([*command, "--checkpoint", str(checkpoint)], capture_output=True, text=True)
        if done.returncode:
            Console().print(f"{name} failed: {done.stderr[-500:]}", markup=False)
            continue
        rows[name] = {**json.loads(done.stdout.splitlines()[-1]), "predicted": predicted(name, checkpoint)}
        Console().print(f"{name}: {rows[name]}", markup=False)
    (out / "memory.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
