"""The command `rlhf`. Heavy libraries are imported inside the commands, so that `rlhf --help` is quick."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.errors import ConfigError, RLHFError
from flows.cli import operations as operations_cli
from flows.cli import runs as run_cli
from flows.cli import stack as stack_cli
from flows.cli.label import app as label_app
from labeling.errors import LabelingError

if TYPE_CHECKING:
    from rich.console import Console

    from flows.stack.services import Name

app = typer.Typer(
    help="Raw text to a reviewed, PPO-aligned assistant with people in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(label_app, name="label")
for command in (
    *(stack_cli.up, stack_cli.down, stack_cli.status, stack_cli.doctor, stack_cli.backup, stack_cli.restore),
    *(run_cli.watch, run_cli.resume, run_cli.retry, operations_cli.logs, operations_cli.gc),
):
    app.command()(command)
Home = Annotated[
    Path | None, typer.Option("--home", help="Where the stack lives: RLHF_HOME, else ./.rlhf", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an option, as in --set ppo.kl_coef=0.1")
]


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from rich.table import Table

    from flows.recipe.schema import recipes as known

    table = Table("recipe", "what it is for")
    for name, description in known().items():
        table.add_row(name, description)
    _console().print(table)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the stages, which are cached, their cost.")] = False,
    stage: Annotated[str, typer.Option(help="Run this stage alone, after those it needs that are not done yet.")] = "",
    home: Home = None,
) -> None:
    """Run a recipe, from corpus to a registered policy; what is unchanged since an earlier run is not run again."""
    from flows.recipe.schema import check_files, check_judged, load_recipe

    chosen = load_recipe(recipe, overrides or [])
    check_files(chosen)
    if stage in ("", "labeling"):
        check_judged(chosen)
    if plan:
        from flows.pipeline.plan import plan as planned
        from flows.pipeline.plan import plan_table

        _console().print(plan_table(chosen, planned(chosen, home)))
        return
    _connect(home)
    from flows.cli.console import speak_in_words
    from flows.cli.interrupts import said_how_to_go_on
    from flows.failures import told_in_words
    from flows.pipeline.flow import rlhf, run_stage_alone

    speak_in_words()
    with told_in_words(), said_how_to_go_on():
        if stage:
            typer.echo(str(run_stage_alone(chosen, stage).path))
            return
        manifest = rlhf(chosen)
    cached = list(manifest.get("cached", {}).values())
    told = "all {} stages were cached, nothing was run again" if all(cached) else "{1} of {0} stages were cached"
    typer.echo(f"release {manifest['release']}: {told.format(len(cached), sum(cached))}; `rlhf report` shows figures")


@app.command()
def deploy(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="YAML files beside the package's recipes.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Runs at once in the pool train; a new pool has one an accelerator.")
    ] = None,
    home: Home = None,
) -> None:
    """Set work pools and deployments up in Prefect, one for each recipe too; said again, it changes nothing."""
    if not os.environ.get("PREFECT_API_URL"):
        _connect(home, "prefect")
    from rich.table import Table

    from flows.deployments.deploy import deploy as set_up
    from flows.deployments.deploy import told

    changes = set_up(recipes or [], slots)
    table = Table("pool or deployment", "", "what")
    for one in changes:
        table.add_row(one.name, one.what, ", ".join(one.fields))
    _console().print(table)
    counts = told(changes)
    same = "nothing was changed: all of it was there"
    typer.echo(same if set(counts) == {"as it was"} else ", ".join(f"{n} {what}" for what, n in counts.items()))


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS, as in policy@candidate.")],
    alias: Annotated[str, typer.Option(help="The name to give it.")] = "champion",
    despite: Annotated[str, typer.Option(help="Why, in words, although its release missed the gate.")] = "",
    home: Home = None,
) -> None:
    """Give a registered version an alias, champion unless named, if its release passed the gate."""
    _connect(home, "mlflow")
    from flows.releases.promote import promote_version

    typer.echo(f"{promote_version(model, alias, despite)} is now {alias}")


@app.command()
def report(
    release: Annotated[str, typer.Argument(help="A release; the newest by default.")] = "",
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Print the figures of a release."""
    _connect(home, "mlflow")
    from flows.releases.report import load_release, report_view

    manifest = load_release(release)
    if as_json:
        typer.echo(json.dumps(manifest, indent=2))
    else:
        _console().print(report_view(manifest))


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION, as in policy@candidate.")],
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Walk from a registered model back to annotation ids and the corpus."""
    _connect(home, "mlflow")
    from flows.releases import lineage as walk

    found = walk.lineage(model, home)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _console().print(walk.lineage_tree(found))


def _connect(home: Path | None, *needed: "Name") -> None:
    """Point Prefect and MLflow at the running stack (all of it, or what is needed), before either is imported."""
    from flows.stack.services import NAMES
    from flows.stack.stack import connect

    os.environ.update(connect(home, needed or NAMES).environment())


def _console() -> "Console":
    from rich.console import Console

    return Console()


def main() -> None:
    """Run the command; errors raised on purpose are printed in words: exit code 2 for options, 1 for all others."""
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except (RLHFError, LabelingError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print(f"rlhf: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
