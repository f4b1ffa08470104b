"""PPO side by side with TRL 1.12.0: the same weights and prompts, in turn, as often as asked; medians and ratios.

    python -m benchmarks.ppo --rounds 3 --threads 2
    python -m benchmarks.ppo --growth --rounds 1

Every run is a separate process. TRL's environment and the workloads are created once, under `.bench/`. Results go to
`.bench/results.json`, and as a Markdown table to `.bench/results.md`.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.environment import trl_python
from benchmarks.figures import Figures
from benchmarks.machine import matrix_rate, processor, versions
from benchmarks.report import markdown, print_table, summaries
from benchmarks.rows import Row, chosen
from benchmarks.workload import Shape, make_workload

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"
LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file", "deploy/accelerate/cpu-2.yaml"]


def main(
    rounds: Annotated[int, typer.Option(help="how often each row runs, in turn with the others")] = 3,
    episodes: Annotated[int, typer.Option(help="episodes a run; a multiple of the batch size")] = 256,
    threads: Annotated[int, typer.Option(help="threads of each side (a row's processes share them)")] = 2,
    row: Annotated[list[str], typer.Option(help="run this row (and its rival); can be repeated")] = [],  # noqa: B006
    growth: Annotated[bool, typer.Option(help="also other batches, lengths and model sizes")] = False,
    workload: Annotated[Path | None, typer.Option(help="existing weights and prompts of the usual size")] = None,
    out: Annotated[Path, typer.Option(help="where results.json and results.md go")] = HOME,
) -> None:
    """Run the rows in turn and report."""
    rows = chosen(row, growth)
    theirs = trl_python(HOME)
    places = {r.shape: _workload(r.shape, workload) for r in rows}
    torch.set_num_threads(threads)
    rates = [matrix_rate()]
    runs: list[dict[str, Figures]] = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        runs.append({r.name: _run(r, places[r.shape], episodes, threads, theirs) for r in rows})
        rates.append(matrix_rate())
    facts = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "rounds": rounds,
        "matrix_gflops": max(rates) / 1e9,
        "versions": versions(),
        "command": " ".join(["python -m benchmarks.ppo", *sys.argv[1:]]),
    }
    summary = summaries(rows, runs, max(rates))
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": facts, "summary": summary, "runs": [{n: vars(f) for n, f in run.items()} for run in runs]}
    (out / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "results.md").write_text(markdown(facts, summary), encoding="utf-8")
    print_table(facts, summary)


def _workload(shape: Shape, existing: Path | None) -> Path:
    """The existing workload for the usual shape, else a new one under `.bench/`."""
    return existing if existing is not None and shape == Shape() else make_workload(HOME / "work" / shape.name, shape)


def _run(row: Row, workload: Path, episodes: int, threads: int, trl: Path) -> Figures:
    """One process (or several) from start to its line of figures."""
    command = [str(trl), "-m", "benchmarks.theirs"] if row.trl else [sys.executable, *_launcher(row), "benchmarks.ours"]
    command += [str(workload), "--name", row.name, "--episodes", str(-(-episodes // row.batch_size) * row.batch_size)]
    command += ["--batch-size", str(row.batch_size), "--max-new-tokens", str(row.max_new_tokens)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // row.processes)), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as out:
        command += ["--out", out] + (["--bf16"] * row.bf16 if row.trl else ["--options", json.dumps(row.options)])
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    figures = Figures(**json.loads(lines[-1]))
    print(f"{row.name}: {figures.episodes / figures.seconds:.2f} episodes/s", flush=True)
    return figures


def _launcher(row: Row) -> list[str]:
    return [*LAUNCHER, "-m"] if row.processes > 1 else ["-m"]


if __name__ == "__main__":
    typer.run(main)
