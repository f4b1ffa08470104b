"""The cost of orchestration: `rlhf run` compared with the same stage functions in a plain loop, and with a rerun.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --recipe tests/recipes/tiny.yaml --rounds 2

Servers are started in a home of their own and stopped at the end; both sides label on the same Label Studio. A round is
a seed: the pipeline in a separate process, timed from its start to its end; the plain loop, timed without unused
imports; and the pipeline again without changes. The order alternates from round to round; in the first the pipeline
runs first, with cold caches. Both must yield the same policy. Results go to `.bench/overhead.json`.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import processor
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import load_recipe
from flows.stack import stack

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".bench"
MOST_OVERHEAD, MOST_RERUN_SHARE, MOST_RERUN_SECONDS = 1.10, 0.05, 15.0


def main(
    recipe: Annotated[str, typer.Option(help="a recipe with a simulated crew, or without labelling")] = "town",
    rounds: Annotated[int, typer.Option(min=1, help="seeds 0, 1, …, in sequence")] = 1,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="directory of overhead.json")] = HOME,
) -> None:
    """Measure and report; exit code 1 when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        try:
            environment = os.environ | stack.up(directory / "home").environment() | {"TQDM_DISABLE": "1"}
            runs = [measure(recipe, number, overrides, directory, environment) for number in range(rounds)]
        finally:
            stack.down(directory / "home")
    means = summary(runs)
    facts = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "recipe": recipe,
        "rounds": rounds,
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
    }
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": facts, "summary": means, "runs": runs}
    (out / "overhead.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    show(facts, means, runs)
    if not means["reached"]:
        raise typer.Exit(1)


def measure(
    recipe: str, seed: int, overrides: list[str], directory: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """A round: seconds of the pipeline, of the plain loop, and of the unchanged pipeline."""
    sides = {"pipeline": pipeline, "plain": plain}
    result: dict[str, Any] = {"seed": seed}
    for side in sides if seed % 2 == 0 else reversed(sides):
        result[side] = sides[side](recipe, options(recipe, side, seed, overrides), directory, environment)
        print(f"seed {seed}, {side}: {result[side]['total']:.1f} s", flush=True)
    result["rerun"] = pipeline(recipe, options(recipe, "pipeline", seed, overrides), directory, environment)
    print(f"seed {seed}, nothing changed: {result['rerun']['total']:.1f} s", flush=True)
    if result["pipeline"]["policy"] != result["plain"]["policy"]:
        raise SystemExit(f"seed {seed}: the policies of the pipeline and of the plain loop differ; what is compared?")
    return result


def options(recipe: str, side: str, seed: int, overrides: list[str]) -> list[str]:
    """The options of a side: they differ only in the projects' title, so that each has its own projects."""
    title = [f"labeling.title={side}-{seed}"] if load_recipe(recipe, overrides).labeling is not None else []
    return [*overrides, f"seed={seed}", *title]


def pipeline(recipe: str, options: list[str], directory: Path, environment: dict[str, str]) -> dict[str, Any]:
    """`rlhf run`, with the seconds of its stages from the release."""
    started = time.perf_counter()
    output = run(
        ["-m", "flows.cli.main", "--home", str(directory / "home"), "run", recipe, *sets(options)], environment
    )
    total = time.perf_counter() - started
    release = next(line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith("release "))
    manifest = json.loads(
        run(["-m", "flows.cli.main", "--home", str(directory / "home"), "report", release, "--json"], environment)
    )
    chosen = load_recipe(recipe, options)
    key = keys(steps(chosen))[chosen.align.method]
    model = directory / "home" / "artifacts" / f"{chosen.align.method}-{key[:16]}" / "model" / "model.safetensors"
    return {"total": total, "stages": manifest["seconds"], "policy": digest(model)}


def plain(recipe: str, options: list[str], directory: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The plain loop, with its own store of annotations."""
    chosen = load_recipe(recipe, options)
    out = directory / f"plain-{chosen.seed}"
    own_home = environment | {"RLHF_HOME": str(out / "home")}
    (out / "home").mkdir(parents=True)
    output = run(["-m", "benchmarks.plain", recipe, str(out), *sets(options)], own_home)
    model = out / chosen.align.method / "model" / "model.safetensors"
    return {**json.loads(output.splitlines()[-1]), "policy": digest(model)}


def sets(options: list[str]) -> list[str]:
    """Options for a command line."""
    return [word for option in options for word in ("--set", option)]


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """The output of a Python process; raises SystemExit with the end of its errors if it failed."""
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-4000:]}")
    return done.stdout


def digest(file: Path) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the rounds, the ratio and the rerun's share, and whether the targets are reached."""
    cold, bare, again = (mean(result[side]["total"] for result in runs) for side in ("pipeline", "plain", "rerun"))
    share = again / cold
    reached = cold / bare <= MOST_OVERHEAD and (share <= MOST_RERUN_SHARE or again <= MOST_RERUN_SECONDS)
    return {
        "pipeline": cold,
        "plain": bare,
        "ratio": cold / bare,
        "rerun": again,
        "rerun_share": share,
        "reached": reached,
    }


def show(facts: dict[str, Any], means: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """The seconds of every stage on both sides, and the headline figures."""
    table = Table("stage", "pipeline, s", "plain loop, s", title=f"{facts['recipe']}, mean of {facts['rounds']} rounds")
    for stage in runs[0]["plain"]["stages"]:
        table.add_row(
            stage, *(f"{mean(result[side]['stages'][stage] for result in runs):.1f}" for side in ("pipeline", "plain"))
        )
    table.add_row("all, with what is between", f"{means['pipeline']:.1f}", f"{means['plain']:.1f}")
    console = Console()
    console.print(table)
    limit = f"at most {MOST_RERUN_SHARE:.0%}, or {MOST_RERUN_SECONDS:.0f} s"
    console.print(f"pipeline / plain loop {means['ratio']:.3f} (at most {MOST_OVERHEAD})", soft_wrap=True)
    console.print(f"nothing changed {means['rerun']:.1f} s, {means['rerun_share']:.1%} of the cold run ({limit})")


if __name__ == "__main__":
    typer.run(main)
