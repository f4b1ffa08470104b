"""The stages of a recipe in a plain loop: the same functions in the same order on plain directories, and nothing else.

No task, no run, no cache, no digest, no upload. `benchmarks.overhead` starts it and holds the pipeline against it. Its
last line is JSON with the seconds of every stage, and of the whole from the moment at which everything that only the
pipeline needs is imported.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from alignment.artifacts import Artifact, write_json
from alignment.journal import Journal
from flows.pipeline.dag import steps
from flows.recipe.schema import load_recipe
from flows.releases.gate import check_reward_gate


def main(
    recipe: str,
    out: Path,
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006
) -> None:
    """Run every stage below `out` and print the seconds."""
    chosen = load_recipe(recipe, overrides)
    started, seconds, artifacts = time.perf_counter(), dict[str, float](), dict[str, Artifact]()

    for name, step in steps(chosen).items():
        begun, directory = time.perf_counter(), out / name
        directory.mkdir(parents=True)
        inputs = {key: artifacts[source].path for key, source in step.inputs.items()}
        write_json(directory / "result.json", dict(step.perform(directory, Journal(directory), inputs)))
        seconds[name] = time.perf_counter() - begun
        artifacts[name] = Artifact(stage=name, key=name, run_id="", path=directory, digest="")
        if name == "reward":
            check_reward_gate(artifacts[name], chosen.reward_gate)
    print(json.dumps({"total": time.perf_counter() - started, "stages": seconds}))


if __name__ == "__main__":
    typer.run(main)
