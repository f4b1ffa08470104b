"""The command `rlhf`.

Prefect, MLflow and torch are imported inside the commands, after `use_stack` or `queries`: both libraries read their
settings on import. It also keeps `rlhf --help` fast.
"""

import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from alignment.errors import ConfigError
from alignment.paths import exists
from flows.cli import operations, releases, runs, sample, stack, sweep
from flows.cli.common import Overrides, print_table, queries
from flows.cli.data import app as data_app
from flows.cli.interrupts import print_resume_command
from flows.cli.label import app as label_app
from flows.cli.notify import app as notify_app
from flows.console import configure_logging, console, echo
from flows.disk import check_disk, home_or_here, nearly_full
from flows.home import home_directory
from flows.recipe.channels import home_channels
from flows.recipe.schema import Recipe, check_files, check_judged, load_recipe
from flows.recipe.schema import recipes as packaged_recipes
from flows.stack.environment import prepare, use_stack, waiting
from flows.stack.processes import StackError
from flows.stack.services import Name

OPEN_FILES, FEWEST_OPEN_FILES = 4096, 256
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(label_app, name="label")
app.add_typer(data_app, name="data")
app.add_typer(notify_app, name="notify")
for command in (
    *(stack.up, stack.down, stack.status, stack.doctor, stack.backup, stack.restore),
    *(releases.report, releases.releases, releases.compare, releases.promote, releases.rollback, releases.lineage),
    *(sweep.sweep, sample.sample, runs.watch, runs.resume, runs.retry, operations.logs, operations.gc),
):
    app.command()(command)


@app.callback()
def set_home(
    home: Annotated[
        Path | None, typer.Option(help="Home of the stack; RLHF_HOME, else ./.rlhf by default.", show_default=False)
    ] = None,
) -> None:
    """RLHF from raw text to a PPO-aligned, reviewed assistant, with human preferences."""
    if home is not None:
        os.environ["RLHF_HOME"] = str(home)
    allow_open_files()
    prepare()


@app.command()
def recipes() -> None:
    """List the packaged recipes."""
    print_table(["recipe", "description"], packaged_recipes().items())


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe, or a YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the stages, which of them are cached, and their cost.")
    ] = False,
    stage: Annotated[str, typer.Option(help="Run only this stage, after the unfinished stages that it needs.")] = "",
) -> None:
    """Run a recipe, from corpus to a registered policy. Finished stages are cached by a hash of their inputs."""
    config = load_recipe(recipe, overrides or [])
    check_files(config)
    with waiting("loading the stages"):
        from flows.pipeline.dag import needed, steps

    servers: tuple[Name, ...] = ("prefect", "mlflow")
    if "labeling" in needed(steps(config), stage or "evaluate"):
        check_judged(config)
        servers = (*servers, "label-studio")
    if plan:
        check_checkpoint(config)
        for line in config.align.warnings():
            echo(line, err=True)
        print_plan(config, stage or "evaluate")
        return
    check_disk(home_or_here())
    use_stack(*servers, label_studio=config.labeling.url if config.labeling else None)
    with waiting("loading Prefect and MLflow"):
        from flows.failures import friendly_errors
        from flows.pipeline.flow import rlhf, run_stage_alone
        from flows.results import refuse_results

    refuse_results()
    configure_logging()
    with friendly_errors(), print_resume_command():
        if stage:
            echo(str(run_stage_alone(config, stage).path))
            return
        manifest = rlhf(config)
    cached = list(manifest.get("cached", {}).values())
    summary = "all {} stages were cached, nothing was run" if all(cached) else "{1} of {0} stages were cached"
    echo(f"release {manifest['release']}: {summary.format(len(cached), sum(cached))}; `rlhf report` prints its figures")


def check_checkpoint(config: Recipe) -> None:
    """Refuse a local checkpoint of an architecture that a stage would refuse."""
    if config.pretrain.checkpoint is not None and exists(config.pretrain.checkpoint):
        with waiting("loading the libraries of models"):
            from alignment.models.scalar import check_config

            check_config(Path(config.pretrain.checkpoint))


def print_plan(config: Recipe, last: str) -> None:
    """The stages for `last`; without MLflow it is unknown which of them are cached, and stderr says why."""
    from flows.pipeline.plan import plan, plan_table

    try:
        with queries("mlflow"):
            rows = plan(config, last)
    except StackError as error:
        echo(f"rlhf: {error}", err=True, lines=True)
        rows = plan(config, last, ask_mlflow=False)
    out = console()
    out.print(plan_table(config, rows, out.width))


@app.command()
def deploy(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="YAML files in addition to the package's recipes.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Concurrent runs of the pool train; by default one per accelerator."),
    ] = None,
) -> None:
    """Create the work pools and deployments in Prefect, with a deployment per recipe. Idempotent."""
    with queries("prefect"):
        from flows.deployments.automations import set_up_automations
        from flows.deployments.deploy import deploy as set_up

        names = [*set_up(recipes or [], slots), *set_up_automations(home_channels(home_directory()))]
    print_table(["pool, deployment or automation"], [(name,) for name in names])


def allow_open_files() -> None:
    """Raise the limit of open files as far as the system allows. Raises ConfigError where too few are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FEWEST_OPEN_FILES:
        raise ConfigError(
            f"a process may open {wanted} files here (`ulimit -n`), and servers and training need {FEWEST_OPEN_FILES}: "
            "raise the limit, as in `ulimit -n 4096` in a new shell"
        )


def main() -> None:
    """Run the command. Our own errors are printed without a traceback: exit code 2 for options, 1 for others."""
    if "--home" in sys.argv[2:] and sys.argv[1] != "--home":
        home = sys.argv.index("--home")
        moved = ["--home", *sys.argv[home + 1 : home + 2], *sys.argv[1:home], *sys.argv[home + 2 :]]
        _fail(ConfigError(f"--home is an option of rlhf itself: rlhf {' '.join(moved)}"), 2)
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except Exception as error:
        from flows.failures import explained

        reason = explained(error)
        if reason is None:
            echo(traceback.format_exc(), err=True, lines=True)  # its text may be of any origin
            sys.exit(1)
        if nearly_full(home_or_here()):
            _fail_at_once(reason)
        _fail(reason, 1)


def _fail_at_once(error: Exception) -> NoReturn:
    """End without the libraries' work at exit: on a full disk Prefect would report there what it could not store."""
    echo(f"rlhf: {error}", err=True, lines=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _fail(error: Exception, code: int) -> None:
    echo(f"rlhf: {error}", err=True, lines=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
