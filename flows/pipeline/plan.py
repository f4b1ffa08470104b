"""`rlhf run --plan`: a dry run that lists stages, cache state and cost."""

from dataclasses import dataclass

from rich.table import Table

from alignment.stages import EVALUATE
from flows.pipeline.cost import Cost, costs, format_count
from flows.pipeline.dag import keys, needed, steps
from flows.recipe.schema import Recipe


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
    caption = "tokens and FLOPs are estimates at full lengths: 6·N a trained token, 2·N a read one"
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
    ):
        table.add_column(name, justify="right" if side == "right" else "left")
    for row in rows:
        cost = [row.cost.parameters, row.cost.trained, row.cost.read, row.cost.flops]
        figures = ["", "", "", ""] if row.cost == Cost() else [format_count(value) for value in cost]
        table.add_row(row.stage, row.key[:12], row.state, *figures)
    return table
