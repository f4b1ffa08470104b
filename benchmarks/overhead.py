"""What orchestration costs: `rlhf run` held against the same stage functions in a plain loop, and against a rerun.

    python -m benchmarks.overhead
    python -m benchmarks.overhead --recipe tests/recipes/tiny.yaml --rounds 2

Servers are started in a home of their own and stopped at the end; both sides label on the same Label Studio. A round is
a seed: the pipeline in a process of its own, timed from the start of the process to its end; the plain loop, timed
without the import of what it does not use; and the pipeline once more with nothing changed. Who is first changes from
round to round; with one round it is the pipeline, which finds caches cold. At the end both must have made the same
policy. Results go to `.bench/overhead.json`.
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
    rounds: Annotated[int, typer.Option(min=1, help="seeds 0, 1, …, one after the other")] = 1,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="where overhead.json goes")] = HOME,
) -> None:
    """Measure and report; exit code 1 when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            environment = os.environ | stack.up(place / "home").environment() | {"TQDM_DISABLE": "1"}
            found = [measure(recipe, number, overrides, place, environment) for number in range(rounds)]
        finally:
            stack.down(place / "home")
    told = summary(found)
    facts = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "recipe": recipe,
        "rounds": rounds,
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
    }
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": facts, "summary": told, "runs": found}
    (out / "overhead.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    show(facts, told, found)
    if not told["reached"]:
        raise typer.Exit(1)


def measure(recipe: str, seed: int, overrides: list[str], place: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One round: seconds of the pipeline, of the plain loop, and of the pipeline with nothing changed."""
    sides = {"pipeline": pipeline, "plain": plain}
    found: dict[str, Any] = {"seed": seed}
    for side in sides if seed % 2 == 0 else reversed(sides):
        found[side] = sides[side](recipe, options(recipe, side, seed, overrides), place, environment)
        print(f"seed {seed}, {side}: {found[side]['total']:.1f} s", flush=True)
    found["rerun"] = pipeline(recipe, options(recipe, "pipeline", seed, overrides), place, environment)
    print(f"seed {seed}, nothing changed: {found['rerun']['total']:.1f} s", flush=True)
    if found["pipeline"]["policy"] != found["plain"]["policy"]:
        raise SystemExit(f"seed {seed}: the policies of the pipeline and of the plain loop differ; what is compared?")
    return found


def options(recipe: str, side: str, seed: int, overrides: list[str]) -> list[str]:
    """The options of one side: the same but for the projects' title, so that each has projects of its own."""
    title = [f"labeling.title={side}-{seed}"] if load_recipe(recipe, overrides).labeling is not None else []
    return [*overrides, f"seed={seed}", *title]


def pipeline(recipe: str, told: list[str], place: Path, environment: dict[str, str]) -> dict[str, Any]:
    """`rlhf run`, with the seconds of its stages from the release."""
    started = time.perf_counter()
    said = run(["-m", "flows.cli.main", "--home", str(place / "home"), "run", recipe, *sets(told)], environment)
    total = time.perf_counter() - started
    release = next(line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("release "))
    manifest = json.loads(
        run(["-m", "flows.cli.main", "--home", str(place / "home"), "report", release, "--json"], environment)
    )
    chosen = load_recipe(recipe, told)
    key = keys(steps(chosen))[chosen.align.method]
    model = place / "home" / "artifacts" / f"{chosen.align.method}-{key[:16]}" / "model" / "model.safetensors"
    return {"total": total, "stages": manifest["seconds"], "policy": digest(model)}


def plain(recipe: str, told: list[str], place: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The plain loop, with a store of annotations of its own."""
    chosen = load_recipe(recipe, told)
    out = place / f"plain-{chosen.seed}"
    alone = environment | {"RLHF_HOME": str(out / "home")}
    (out / "home").mkdir(parents=True)
    said = run(["-m", "benchmarks.plain", recipe, str(out), *sets(told)], alone)
    model = out / chosen.align.method / "model" / "model.safetensors"
    return {**json.loads(said.splitlines()[-1]), "policy": digest(model)}


def sets(told: list[str]) -> list[str]:
    """Options for a command line."""
    return [word for option in told for word in ("--set", option)]


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """What a Python of ours printed. Ends with the end of its errors when it failed."""
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-4000:]}")
    return done.stdout


def digest(file: Path) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the rounds, the ratio and the rerun's share, and whether the targets are reached."""
    cold, bare, again = (mean(one[side]["total"] for one in found) for side in ("pipeline", "plain", "rerun"))
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


def show(facts: dict[str, Any], told: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The seconds of every stage on both sides, and the headline figures."""
    table = Table("stage", "pipeline, s", "plain loop, s", title=f"{facts['recipe']}, mean of {facts['rounds']} rounds")
    for stage in found[0]["plain"]["stages"]:
        table.add_row(
            stage, *(f"{mean(one[side]['stages'][stage] for one in found):.1f}" for side in ("pipeline", "plain"))
        )
    table.add_row("all, with what is between", f"{told['pipeline']:.1f}", f"{told['plain']:.1f}")
    console = Console()
    console.print(table)
    limit = f"at most {MOST_RERUN_SHARE:.0%}, or {MOST_RERUN_SECONDS:.0f} s"
    console.print(f"pipeline / plain loop {told['ratio']:.3f} (at most {MOST_OVERHEAD})", soft_wrap=True)
    console.print(f"nothing changed {told['rerun']:.1f} s, {told['rerun_share']:.1%} of the cold run ({limit})")


if __name__ == "__main__":
    typer.run(main)
