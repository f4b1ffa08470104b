"""The stages of a recipe in a plain loop: the same functions in the same order on plain directories, and nothing else.

No task, no run, no cache, no digest, no upload. `benchmarks.overhead` starts it and holds the pipeline against it. Its
last line is JSON with the seconds of every stage, and of the whole from the moment at which everything that only the
pipeline needs is imported.
"""

import json
import time
from collections.abc import Mapping
from inspect import signature, unwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.artifacts import Artifact, write_json
from alignment.journal import Journal
from flows.pipeline import tasks as stages
from flows.pipeline.flow import STAGES
from flows.recipe.dag import Step, steps
from flows.recipe.schema import load_recipe
from flows.releases.manifest import require


def main(
    recipe: str,
    out: Path,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006
) -> None:
    """Run every stage below `out` and print the seconds."""
    chosen = load_recipe(recipe, overrides)
    started, seconds, made = time.perf_counter(), dict[str, float](), dict[str, Artifact]()

    def carry_out(step: Step, inputs: Mapping[str, Artifact | None], work: Any) -> Artifact:
        begun, place = time.perf_counter(), out / step.stage
        place.mkdir(parents=True)
        write_json(place / "result.json", dict(work(place, Journal(place))))
        seconds[step.stage] = time.perf_counter() - begun
        return Artifact(stage=step.stage, key=step.stage, run_id="", path=place, digest="")

    stages.carry_out = carry_out  # the one thing that a stage does beside its work
    for name, step in steps(chosen).items():
        stage = unwrap(STAGES[name])
        absent = dict.fromkeys(list(signature(stage).parameters)[1:])
        made[name] = stage(step, **(absent | {given: made[source] for given, source in step.inputs.items()}))
        if name == "reward":
            require(made[name], chosen.reward_gate)
    print(json.dumps({"total": time.perf_counter() - started, "stages": seconds}))


if __name__ == "__main__":
    typer.run(main)
