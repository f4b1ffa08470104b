"""Ablation of the town's recipe: the recipe with a single change, over several seeds.

    rlhf up
    python -m benchmarks.ablation --seed 0 --seed 1 --seed 2 --jobs 2

Every cell is a run of `rlhf run town`, so that stages which a change does not touch are run once a seed, and a table
that was broken off goes on where it was. The figures are those of the release: held-out prompts, judged by the facts of
the town. Results go to `.bench/ablation.json`, and as a Markdown table to `.bench/ablation.md`.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from tqdm import tqdm

HOME = Path(__file__).parent.parent / ".bench"
DEFAULT = "the recipe"
VARIANTS: dict[str, list[str]] = {
    DEFAULT: [],
    "no ptx": ["ppo.ptx_coef=0"],
    "ptx on all of the corpus": ["align.ptx_min_reward=null"],
    "no safety rule": ["align.rules=[]"],
    "fixed kl_coef": ["ppo.kl_target=null"],
    "no penalty for KL": ["ppo.kl_coef=0", "ppo.kl_target=null"],
    "advantages not whitened": ["ppo.whiten_advantages=false"],
    "rewards whitened too": ["ppo.whiten_rewards=true"],
    "1 epoch": ["ppo.epochs=1"],
    "4 epochs": ["ppo.epochs=4"],
    "value warm-up, 4 steps": ["ppo.value_warmup_steps=4"],
    "shared trunk": ["ppo.layout=shared_trunk"],
    "LoRA": ["ppo.layout=lora", "ppo.policy_learning_rate=0.001", "ppo.value_learning_rate=0.001"],
    "step chosen by held-out labels": ["align.select=heldout_reward"],
    "DPO": ["align.method=dpo"],
    "RLOO": ["align.method=rloo"],
    "best-of-n": ["align.method=best_of_n"],
}
COLUMNS = {"win rate": 3, "harmless": 3, "untruthful": 2, "tax": 3, "KL": 2, "minutes": 1}


def main(
    seed: Annotated[list[int], typer.Option(help="can be repeated")] = [0, 1, 2],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="only these; can be repeated")] = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(help="runs at a time; the processor's threads are shared among them")] = 1,
    recipe: str = "town",
) -> None:
    """Run every variant on every seed and print the table."""
    if unknown := [name for name in variant if name not in VARIANTS]:
        raise SystemExit(f"there is no variant {unknown}; there are {list(VARIANTS)}")
    HOME.mkdir(exist_ok=True)
    names = list(dict.fromkeys([DEFAULT, *(variant or VARIANTS)]))
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
    progress = tqdm(total=len(names) * len(seed), desc="runs")

    def cell(name: str, number: int, threads: int) -> None:
        results[name][number] = figures(release(recipe, [f"seed={number}", *VARIANTS[name]], threads))
        keep(results)
        progress.update()

    cores = len(os.sched_getaffinity(0))
    for number in seed:  # runs the stages that the variants share, once
        cell(DEFAULT, number, cores)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(cell, name, n, max(1, cores // jobs)) for name in names[1:] for n in seed]
        for job in waiting:
            job.result()
    progress.close()
    print((HOME / "ablation.md").read_text(encoding="utf-8"))


def release(recipe: str, options: list[str], threads: int) -> dict[str, Any]:
    """Run the recipe with these options and return the release's manifest."""
    sets = [part for option in options for part in ("--set", option)]
    output = _rlhf(["run", recipe, *sets], threads)
    (line,) = [line for line in output.splitlines() if line.startswith("release ")]
    return dict(json.loads(_rlhf(["report", line.split()[1].rstrip(":"), "--json"], threads)))


def _rlhf(arguments: list[str], threads: int) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"rlhf {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def figures(manifest: dict[str, Any]) -> dict[str, float]:
    """The columns of a release; `untruthful` and `tax` (untrue answers, held-out loss) are shares of SFT's."""
    gold, tax = manifest["gold"], manifest["tax"]
    return {
        "win rate": manifest["win_rate_vs_sft"]["rate"],
        "harmless": gold["policy"]["harmless"],
        "untruthful": (1 - gold["policy"]["truthful"]) / (1 - gold["sft"]["truthful"]),
        "tax": tax["policy"] / tax["sft"],
        "KL": manifest["kl_to_sft"],
        "minutes": manifest["seconds"][manifest["method"]] / 60,
    }


def keep(results: dict[str, dict[int, dict[str, float]]]) -> None:
    """Write the results so far: means over the seeds, and the value of each seed."""
    (HOME / "ablation.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    rows = ["| | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name, cells in results.items():
        if cells:
            seeds = sorted(cells)
            texts = [
                f"**{mean(cells[n][c] for n in seeds):.{d}f}** ({', '.join(f'{cells[n][c]:.{d}f}' for n in seeds)})"
                for c, d in COLUMNS.items()
            ]
            rows.append(f"| {name} | " + " | ".join(texts) + " |")
    (HOME / "ablation.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
