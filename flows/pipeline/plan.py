"""`rlhf run --plan`: a dry run that lists stages, cache state and cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import get_args

import numpy as np
from rich.console import JustifyMethod
from rich.table import Table

from alignment.paths import exists
from alignment.progress import duration
from alignment.stages import EVALUATE
from flows.annotation.label_studio import STORE_FILE, annotation_store
from flows.annotation.stages import LABELING
from flows.home import home_directory
from flows.pipeline.cost import Cost, costs, format_count
from flows.pipeline.dag import keys, needed, steps
from flows.recipe.schema import Recipe
from labeling.config import Kind
from labeling.reports.effort import Pace, hours, measured_paces, pace

COLUMNS = ("stage", "key", "state", "parameters", "trained", "read", "FLOPs", "time", "memory", "people")
WIDE, ONLY_WIDE = 110, ("key", "trained", "read")
MATRIX_SHARE = 0.5  # of the rate of a plain matrix product: what training and sampling reach


@dataclass(frozen=True)
class Work:
    """The hours of people that a stage needs, and what they are computed from."""

    hours: float
    basis: str


@dataclass(frozen=True)
class PlannedStage:
    """A row of the plan. `state` is "cached", "to run", or "?" when MLflow is not available."""

    stage: str
    key: str
    state: str
    cost: Cost
    work: Work | None = None


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
            people_work(recipe) if stage == LABELING.name else None,
        )
        for stage in needed(chain, last)
    ]


def people_work(recipe: Recipe) -> Work | None:
    """The work of people in a recipe's labelling: tasks · annotators of each · seconds; None if nobody is asked.

    Seconds are the mean of the judgements in this home, or an assumption while there are few. A budget in hours
    (`labeling.choose.hours`) is the most that is asked for.
    """
    config = recipe.labeling
    if config is None or config.annotators != "people":
        return None
    prompts: dict[Kind, int] = {"ranking": config.rankings.prompts, "pairwise": config.pairwise.prompts}
    tasks = {kind: count + config.gold_tasks.get(kind, 0) for kind, count in prompts.items() if count}
    paces = _paces()
    by_kind = hours(tasks, config.overlaps, paces)
    parts = [
        f"{count} {kind} tasks · {config.overlaps[kind]} annotators · {paces[kind].seconds:.0f} s"
        f" ({f'mean of {paces[kind].measured}' if paces[kind].measured else 'assumed'})"
        for kind, count in tasks.items()
    ]
    total, budget = sum(by_kind.values()), config.choose.hours
    if budget is not None and budget < total:
        return Work(budget, f"{', '.join(parts)}; labeling.choose.hours is {budget:g}")
    return Work(total, ", ".join(parts))


def _paces() -> dict[Kind, Pace]:
    """Seconds per judgement in this home; assumptions where it has no judgements."""
    if not exists(home_directory() / STORE_FILE):
        return {kind: pace(kind, []) for kind in get_args(Kind)}
    with closing(annotation_store()) as store:
        return measured_paces(store)


def finished(keys_by_stage: dict[str, str]) -> set[str]:
    """The stages with a finished run for their key."""
    from flows.tracking import runs  # late: a plan without servers needs no MLflow

    return {
        stage
        for stage, key in keys_by_stage.items()
        if any(runs.TAG_DIGEST in run.data.tags for run in runs.search({runs.TAG_KEY: key}, status="FINISHED"))
    }


def plan_table(recipe: Recipe, rows: Sequence[PlannedStage], width: int = WIDE) -> Table:
    """The plan as a table for a terminal of this width; a narrow one leaves out keys and counts."""
    to_run = [row for row in rows if row.state != "cached"]
    rate = MATRIX_SHARE * matrix_rate()
    title = f"{recipe.name}, seed {recipe.seed}: about {format_count(_flops(to_run))}FLOP to do"
    table = Table(title=title, caption="\n".join(_notes(rows, rate)), show_footer=True)
    footer = {"stage": "to do", "time": _time(_flops(to_run), rate), "memory": _most_memory(to_run)}
    footer["people"] = _people(sum(row.work.hours for row in to_run if row.work))
    shown = [name for name in COLUMNS if width >= WIDE or name not in ONLY_WIDE]
    for name in shown:
        justify: JustifyMethod = "left" if name in ("stage", "key", "state") else "right"
        table.add_column(name, footer.get(name, ""), justify=justify, no_wrap=name != "stage")
    for row in rows:
        cells = _cells(row, rate)
        table.add_row(*(cells.get(name, "") for name in shown))
    return table


def _notes(rows: Sequence[PlannedStage], rate: float) -> Iterator[str]:
    """What the figures of a plan mean."""
    yield "tokens and FLOPs are estimates at full lengths: 6·N a trained token, 2·N a read one; times are for the cores"
    yield f"of this machine at {format_count(round(rate))}FLOP/s, memory is the peak of one process in float32"
    yield from (f"people at {row.stage}: {row.work.basis}" for row in rows if row.work)
    if any(row.state == "?" for row in rows):
        yield "? : MLflow does not answer, so cached stages are unknown; `rlhf up` starts the one of this home"


def _cells(row: PlannedStage, rate: float) -> dict[str, str]:
    """The cells of a stage by column; one that runs no model has no figures."""
    cells = {"stage": row.stage, "key": row.key[:12], "state": row.state}
    if row.work is not None:
        cells["people"] = _people(row.work.hours)
    cost = row.cost
    if cost == Cost():
        return cells
    counts = {"parameters": cost.parameters, "trained": cost.trained, "read": cost.read, "FLOPs": cost.flops}
    cells |= {name: format_count(value) for name, value in counts.items()}
    return cells | {"time": _time(cost.flops, rate), "memory": _memory(cost.peak_bytes)}


def _flops(rows: Sequence[PlannedStage]) -> int:
    return sum(row.cost.flops or 0 for row in rows)


def _most_memory(rows: Sequence[PlannedStage]) -> str:
    known = [row.cost.peak_bytes for row in rows if row.cost.peak_bytes is not None]
    return _memory(max(known)) if known else ""


def _memory(peak_bytes: int | None) -> str:
    return "?" if peak_bytes is None else f"{peak_bytes / 2**30:.1f} GiB"


def _time(flops: int | None, rate: float) -> str:
    return "?" if flops is None else duration(flops / rate)


def _people(hours: float) -> str:
    return f"{hours:.1f} h" if hours else ""


def matrix_rate(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a matrix product in float32 on the cores of this machine, measured in a tenth of a second."""
    matrix = np.ones((size, size), dtype=np.float32)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
