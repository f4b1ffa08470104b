"""`rlhf run --plan`: a dry run that lists stages, cache state and cost."""

import time
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from rich.table import Table

from alignment.stages import EVALUATE
from flows.pipeline.cost import Cost, costs, format_count
from flows.pipeline.dag import keys, needed, steps
from flows.recipe.schema import Recipe

MATRIX_SHARE = 0.5  # of the rate of a plain matrix product: what training and sampling reach


@dataclass(frozen=True)
class PlannedStage:
    """A row of the plan. `state` is "cached", "to run", or "?" when MLflow is not available."""

    stage: str
    key: str
    state: str
    cost: Cost


def plan(recipe: Recipe, last: str = EVALUATE.name, *, ask_mlflow: bool = True) -> list[PlannedStage]:
    """The stages that run for `last`, and `last` itself, in order. Raises ConfigError for an unknown stage."""
    chain = steps(recipe)
    keys_by_stage, cost_by_stage = keys(chain), costs(recipe, chain)
    cached = finished(keys_by_stage) if ask_mlflow else None
    return [
        PlannedStage(
            stage,
            keys_by_stage[stage],
            "?" if cached is None else "cached" if stage in cached else "to run",
            cost_by_stage.get(stage, Cost()),
        )
        for stage in needed(chain, last)
    ]


def finished(keys_by_stage: dict[str, str]) -> set[str]:
    """The stages with a finished run for their key."""
    from flows.tracking import runs  # late: a plan without servers needs no MLflow

    return {
        stage
        for stage, key in keys_by_stage.items()
        if any(runs.TAG_DIGEST in run.data.tags for run in runs.search({runs.TAG_KEY: key}, status="FINISHED"))
    }


def plan_table(recipe: Recipe, rows: list[PlannedStage]) -> Table:
    """The plan as a table for the terminal."""
    total = sum(row.cost.flops or 0 for row in rows if row.state != "cached")
    title = f"{recipe.name}, seed {recipe.seed}: about {format_count(total)}FLOP to do"
    rate = MATRIX_SHARE * matrix_rate()
    caption = (
        "tokens and FLOPs are estimates at full lengths: 6·N a trained token, 2·N a read one; times are for the cores\n"
        f"of this machine at {format_count(round(rate))}FLOP/s, memory is the peak of one process in float32"
    )
    if any(row.state == "?" for row in rows):
        caption += "\n? : MLflow does not answer, so cached stages are unknown; `rlhf up` starts the one of this home"
    table = Table(title=title, caption=caption)
    for name, side in (
        ("stage", "left"),
        ("key", "left"),
        ("state", "left"),
        ("parameters", "right"),
        ("trained", "right"),
        ("read", "right"),
        ("FLOPs", "right"),
        ("time", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify="right" if side == "right" else "left")
    for row in rows:
        table.add_row(row.stage, row.key[:12], row.state, *_figures(row.cost, rate))
    return table


def _figures(cost: Cost, rate: float) -> list[str]:
    """The columns of a stage's cost; empty for a stage that runs no model."""
    if cost == Cost():
        return [""] * 6
    counts = [format_count(value) for value in (cost.parameters, cost.trained, cost.read, cost.flops)]
    duration = "?" if cost.flops is None else str(timedelta(seconds=round(cost.flops / rate)))
    memory = "?" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**30:.1f} GiB"
    return [*counts, duration, memory]


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a matrix product in float32 on the cores of this machine, measured in a tenth of a second."""
    matrix = np.ones((size, size), dtype=np.float32)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
