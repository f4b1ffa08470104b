"""`rlhf sweep`: the pipeline for every cell of a grid, each a child of one flow run, and their figures together.

Cells share the stages that they have in common, because a stage is found by its key. A cell that fails is reported, and
the others run. Every finished cell is kept in `home/sweeps/NAME/cells`, NAME being a hash of all cells, so the same
command goes on where it was stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from alignment.artifacts import fingerprint, write_json, write_text
from alignment.stages import EVALUATE
from flows.failures import NotYet, explained
from flows.home import home_directory
from flows.pipeline.dag import keys, needed, steps
from flows.pipeline.flow import headlines, rlhf
from flows.pipeline.plan import finished
from flows.recipe.schema import Recipe
from flows.sweeps.grid import Cell, cells_of
from flows.sweeps.pictures import draw_pictures
from flows.sweeps.summary import Outcome, as_csv, markdown
from flows.tracking import links, runs

SWEEPS, CELLS, REPORT = "sweeps", "cells", "report.md"
TAG_SWEEP = "rlhf.sweep"
LONGEST_NAME = 60
LONGEST_PROBLEM = 500


@dataclass(frozen=True)
class Sweep:
    """A sweep under its name."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def directory(self) -> Path:
        """Where its cells and its report are kept."""
        return home_directory() / SWEEPS / self.name


def sweep_of(cells: Sequence[Cell]) -> Sweep:
    """The sweep over these cells; its name depends on what they compute, not on where."""
    recipes = "-".join(dict.fromkeys(cell.recipe.name for cell in cells))
    digest = fingerprint([[cell.name, cell_key(cell.recipe)] for cell in cells])
    return Sweep(name=f"{recipes[:LONGEST_NAME]}-{digest[:8]}", cells=tuple(cells))


def cell_key(recipe: Recipe) -> str:
    """A hash of everything that a cell's figures and its gates depend on."""
    gates = {"reward": recipe.reward_gate, "release": recipe.release_gate}
    return fingerprint([keys(steps(recipe))[EVALUATE.name], gates])


def equal_settings(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Pairs of settings that compute the same: the option in which they differ has no effect."""
    first: dict[str, str] = {}
    pairs = {(first.setdefault(cell_key(cell.recipe), cell.setting), cell.setting) for cell in cells}
    return sorted(pair for pair in pairs if pair[0] != pair[1])


def stages_to_run(cells: Sequence[Cell], *, ask_mlflow: bool = True) -> dict[str, int]:
    """How often each stage has to run, with what cells share counted once; what is cached is left out."""
    by_key: dict[str, str] = {}
    for cell in cells:
        chain = steps(cell.recipe)
        keys_by_stage = keys(chain)
        cached = finished(keys_by_stage) if ask_mlflow else set()
        by_key |= {keys_by_stage[name]: name for name in needed(chain, EVALUATE.name) if name not in cached}
    names = list(by_key.values())
    return {name: names.count(name) for name in dict.fromkeys(names)}


@flow(name="rlhf-sweep", persist_result=False)
def rlhf_sweep(recipes: list[str], options: list[str], seeds: list[int]) -> list[Outcome]:
    """Run every cell that is not finished; returns the outcomes of all, and reports them after each cell.

    The arguments are those of `flows.sweeps.grid.cells_of`: Prefect limits the size of parameters, and whole recipes of
    some forty cells exceed it.
    """
    sweep = sweep_of(cells_of(recipes, options, seeds))
    log, outcomes = get_run_logger(), dict[str, Outcome]()
    for one, other in equal_settings(sweep.cells):
        log.warning("%r and %r are the same runs: the option in which they differ has no effect", one, other)
    with runs.active(**_mlflow_run(sweep)) as run_id:
        links.link("mlflow-run", links.mlflow_page(run_id), "MLflow: the sweep, with a run for each cell below it")
        for number, cell in enumerate(sweep.cells, start=1):
            log.info("cell %d of %d: %s", number, len(sweep.cells), cell.name)
            outcomes[cell.name] = outcome_of(cell, sweep.directory / CELLS)
            write_report(sweep, list(outcomes.values()), run_id)
        report = markdown(sweep.name, list(outcomes.values()))
        create_markdown_artifact(markdown=report, key="sweep", description=sweep.name)
    return list(outcomes.values())


def _mlflow_run(sweep: Sweep) -> dict[str, Any]:
    """The arguments of the sweep's run in MLflow: that of an earlier attempt, or a new one."""
    earlier = runs.search({TAG_SWEEP: sweep.name}, limit=1)
    if earlier:
        return {"run_id": earlier[0].info.run_id}
    tags = {TAG_SWEEP: sweep.name, runs.TAG_FLOW_RUN: str(flow_run.id or ""), **links.back_tags()}
    return {"experiment_id": runs.experiment_id(), "run_name": f"sweep {sweep.name}", "tags": tags}


def outcome_of(cell: Cell, directory: Path) -> Outcome:
    """The kept outcome of a cell, or that of its run now. A failed one is not kept, and runs again the next time."""
    path = directory / f"{cell_key(cell.recipe)[:16]}.json"
    if path.exists():
        return Outcome.model_validate_json(path.read_bytes()).model_copy(update={"setting": cell.setting})
    pipeline = rlhf.with_options(flow_run_name=cell.name.replace("{", "(").replace("}", ")"))
    try:
        manifest = pipeline(cell.recipe, promote=False)
    except NotYet:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {explained(error) or error}"[:LONGEST_PROBLEM]
        get_run_logger().warning("%s failed, the others go on: %s", cell.name, problem)
        return Outcome(setting=cell.setting, seed=cell.recipe.seed, problem=problem)
    outcome = read_manifest(cell, manifest)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, outcome.model_dump(mode="json"))
    return outcome


def read_manifest(cell: Cell, manifest: Mapping[str, Any]) -> Outcome:
    """The outcome of a cell whose release has this manifest."""
    return Outcome(
        setting=cell.setting,
        seed=cell.recipe.seed,
        release=manifest["release"],
        model=manifest["models"]["policy"] or "",
        gate_passed=manifest["gate"]["passed"],
        figures={name: float(value) for name, value in headlines(manifest).items() if value is not None},
    )


def write_report(sweep: Sweep, outcomes: Sequence[Outcome], run_id: str) -> None:
    """Write table, rows and pictures of the outcomes so far into the sweep's directory, and log them to MLflow."""
    directory, report = sweep.directory, markdown(sweep.name, outcomes)
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / REPORT, report)
    write_text(directory / "cells.csv", as_csv(outcomes))
    pictures = draw_pictures(outcomes, directory)
    client = MlflowClient()
    for path in (directory / REPORT, directory / "cells.csv", *pictures):
        client.log_artifact(run_id, str(path), "sweep")
    mlflow.set_tag(links.TAG_NOTE, f"{report}\n{links.back_tags().get(links.TAG_NOTE, '')}"[: runs.LONGEST_TAG])
