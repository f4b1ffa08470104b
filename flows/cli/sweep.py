"""`rlhf sweep`: a grid over options and seeds, with means, intervals and pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.common import queries
from flows.cli.interrupts import print_resume_command
from flows.console import configure_logging, console, echo
from flows.disk import check_disk, home_or_here
from flows.recipe.schema import check_files, check_judged
from flows.stack.environment import use_stack, waiting
from flows.stack.processes import StackError
from flows.stack.services import Name
from flows.sweeps.grid import Cell, cells_of, parse_seeds

if TYPE_CHECKING:
    from flows.sweeps.summary import Outcome  # with scipy, which is slow to import


def sweep(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Names of recipes, or YAML files.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE,VALUE", help="Values of an option, as in --set ppo.kl_coef=0.02,0.05"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, as in 0-2 or 0,3,5.")] = "0-2",
    plan: Annotated[bool, typer.Option("--plan", help="Print the cells and the stages that have to run.")] = False,
) -> None:
    """Run recipes with every combination of option values and every seed, and compare their figures.

    What cells share is computed once, and the same command goes on where it was stopped. No alias is set: promote the
    policy of your choice with `rlhf promote`.
    """
    options, numbers = overrides or [], parse_seeds(seeds)
    cells = cells_of(recipes, options, numbers)
    for cell in cells:
        check_files(cell.recipe)
        check_judged(cell.recipe)
    if plan:
        _print_plan(cells)
        return
    check_disk(home_or_here())
    servers: tuple[Name, ...] = ("prefect", "mlflow")
    labelled = [cell.recipe.labeling for cell in cells if cell.recipe.labeling is not None]
    use_stack(
        *servers,
        *(("label-studio",) if labelled else ()),
        label_studio=next((config.url for config in labelled if config.url), None),
    )
    with waiting("loading Prefect and MLflow"):
        from flows.failures import friendly_errors
        from flows.pipeline.sweep import REPORT, rlhf_sweep, sweep_of
        from flows.results import refuse_results

    refuse_results()
    configure_logging()
    with friendly_errors(), print_resume_command():
        planned = sweep_of(cells)
        outcomes = rlhf_sweep.with_options(flow_run_name=planned.name)(recipes, options, numbers)
    _print_outcomes(outcomes)
    echo(f"report, cells and pictures: {planned.directory / REPORT}")
    if failed := [outcome for outcome in outcomes if outcome.problem]:
        echo(f"{len(failed)} of {len(outcomes)} cells failed; the same command runs only these again", err=True)
        raise typer.Exit(1)


def _print_plan(cells: Sequence[Cell]) -> None:
    """The settings, and the stages to run; without MLflow every stage counts."""
    with waiting("loading the stages"):
        from flows.pipeline.sweep import equal_settings, stages_to_run

    try:
        with queries("mlflow"):
            stages = stages_to_run(cells)
    except StackError as error:
        echo(f"rlhf: {error}", err=True, lines=True)
        stages = stages_to_run(cells, ask_mlflow=False)
    for setting in dict.fromkeys(cell.setting for cell in cells):
        seeds = [str(cell.recipe.seed) for cell in cells if cell.setting == setting]
        echo(f"{setting}: seeds {', '.join(seeds)}")
    for one, other in equal_settings(cells):
        echo(f"{one!r} and {other!r} are the same runs: the option in which they differ has no effect", err=True)
    runs = ", ".join(f"{name} {count} times" if count > 1 else name for name, count in stages.items())
    echo(f"{len(cells)} cells; to run: {runs or 'nothing, everything is cached'}")


def _print_outcomes(outcomes: Sequence["Outcome"]) -> None:
    from flows.sweeps.summary import NOTE, by_setting, difference_table, table

    out = console()
    out.print(_as_table(table(outcomes), NOTE))
    if len(by_setting(outcomes)) > 1:
        out.print(_as_table(difference_table(outcomes), f"difference to {outcomes[0].setting}, seed by seed"))
    for outcome in outcomes:
        if outcome.problem:
            echo(f"{outcome.setting}, seed {outcome.seed}: {outcome.problem}", err=True, lines=True)


def _as_table(rows: Sequence[Sequence[str]], caption: str) -> Table:
    view = Table(caption=caption)
    for number, name in enumerate(rows[0]):
        view.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        view.add_row(*row)
    return view
