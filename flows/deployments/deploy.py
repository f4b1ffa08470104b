"""`rlhf deploy`: the pools and deployments of `prefect.yaml` on a Prefect server, and a deployment of each recipe.

Idempotent. Manual changes that the file does not cover are kept: the limit and the type of an existing pool, and
whether a schedule is paused.
"""

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner.storage import LocalStorage
from prefect.workers.process import ProcessWorker
from pydantic import Field

from alignment.data.readers import is_hub_id
from alignment.errors import ConfigError, causes
from alignment.paths import exists
from alignment.records import Record
from flows.recipe.schema import DATA_SCHEME, RECIPES, TOWN_SCHEME, Recipe, find_recipe, load_recipe, raw_values
from flows.stack.processes import NotReady
from labeling.child_environment import child_environment

log = logging.getLogger(__name__)
FILE = Path(__file__).with_name("prefect.yaml")
PIPELINE, TRAIN = "pipeline", "train"
SET_DIRECTORY = "prefect.deployments.steps.set_working_directory"
HERE = "."
LOCAL = ("labeling.", "compute.")  # sections whose files are never data sets of the hub
SERVER_FAILS = 500  # and above: statuses of a server, or of a proxy before it, that fails


class Pool(Record):
    """A work pool. An unknown key of `prefect.yaml` is an error in all of these classes."""

    type: Literal["process", "docker", "kubernetes"]
    description: str = ""


class PoolOf(Record):
    """The pool of a deployment, and its job variables."""

    name: str
    job_variables: dict[str, Any] = Field(default_factory=dict)


class Every(Record):
    """A schedule with a fixed interval in seconds."""

    interval: float = Field(gt=0)
    slug: str


class Limit(Record):
    """The maximum number of concurrent runs of a deployment, and the strategy for further ones."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Spec(Record):
    """A deployment. The default description is its flow's."""

    name: str
    entrypoint: str
    work_pool: PoolOf
    description: str = ""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: tuple[Every, ...] = ()
    concurrency_limit: Limit | None = None


class WorkingDirectory(LocalStorage):
    """The only pull step of our deployments: a run works in an empty temporary directory with our worker, and in the
    image's working directory in a container.

    Without a pull step Prefect copies the current directory of the worker, environments and outputs included, for every
    run. Our worker refuses any other directory: Prefect reads its configuration where it starts.
    """

    def __init__(self) -> None:
        """The directory stays relative: it is resolved where a run works, not where it is deployed from."""
        super().__init__(HERE)

    def to_pull_step(self) -> dict[str, Any]:
        """The step as in prefect.yaml."""
        return {SET_DIRECTORY: {"directory": HERE}}


def read_file(path: Path = FILE) -> tuple[dict[str, Pool], list[Spec]]:
    """The pools and the deployments of a prefect.yaml."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    pools = {name: Pool.model_validate(pool) for name, pool in values["definitions"]["pools"].items()}
    return pools, [Spec.model_validate(deployment) for deployment in values["deployments"]]


def recipe_specs(pipeline: Spec, names: Sequence[str]) -> list[Spec]:
    """One deployment of the pipeline for each recipe of the package and of `names`, with every value filled in.

    Runs work elsewhere, so relative paths are deployed as absolute ones: below the current directory, as in `rlhf run`,
    or beside the recipe's file if they are only there. Raises ConfigError for one that is at neither place.
    """
    own = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
    specs: dict[str, Spec] = {}
    for name in [*own, *names]:
        recipe = load_recipe(name)
        if recipe.name == pipeline.name or (recipe.name in specs and name not in own):
            raise ConfigError(f"a deployment {recipe.name} exists already: give the recipe {name} another `name`")
        parameters = absolute_paths(recipe, find_recipe(name))
        if name not in own:
            _check_relative(Recipe.model_validate(parameters), name)
        specs[recipe.name] = pipeline.model_copy(
            update={
                "name": recipe.name,
                "description": recipe.description,
                "tags": (*pipeline.tags, "recipe"),
                "parameters": {"recipe": parameters},
            }
        )
    return list(specs.values())


def _filled(values: Any, raw: Any) -> Any:
    """All values of a recipe; data://NAME and the origins of data keep the form that they have in its file."""
    if isinstance(values, dict) and isinstance(raw, dict):
        return values | {name: _filled(values.get(name), value) for name, value in raw.items()}
    if isinstance(values, list) and isinstance(raw, list):
        return [_filled(value, item) for value, item in zip(values, raw, strict=True)]
    return raw if isinstance(raw, str) and (raw.startswith(DATA_SCHEME) or values is None) else values


def absolute_paths(recipe: Recipe, file: Path) -> dict[str, Any]:
    """All values of the recipe in a file; files in the current directory, or beside the recipe, by absolute paths."""
    values: dict[str, Any] = _filled(recipe.model_dump(mode="json"), raw_values(file))
    parts: Any = values  # mappings and lists
    for option, path in _files(recipe):
        *sections, last = (int(part) if part.isdigit() else part for part in option.split("."))
        section = reduce(getitem, sections, parts)
        if str(section[last]).startswith(DATA_SCHEME):
            values["data_root"] = str(_root(recipe, file))
        else:
            section[last] = str(_absolute(path, file))
    return values


def _root(recipe: Recipe, file: Path) -> Path:
    """The absolute data_root: that of the current directory, unless only the recipe's directory has one."""
    root = Path(recipe.data_root)
    here, beside = root.absolute(), (file.parent / root).absolute()
    return beside if file.parent != RECIPES and beside.is_dir() and not here.is_dir() else here


def _absolute(path: str, file: Path) -> Path | str:
    """The absolute path of a file in the current directory or beside the recipe; anything else as it is."""
    if path.startswith((TOWN_SCHEME, DATA_SCHEME)) or Path(path).is_absolute():
        return path
    here, beside = Path(path).absolute(), (file.parent / path).absolute()
    return here if exists(here) else beside if exists(beside) else path


def _check_relative(recipe: Recipe, name: str) -> None:
    """Raise ConfigError for a relative path: a run, which works elsewhere, would not have the file."""
    for option, path in _files(recipe):
        named_elsewhere = path.startswith(TOWN_SCHEME) or (not option.startswith(LOCAL) and is_hub_id(path))
        if not Path(path).is_absolute() and not named_elsewhere:
            raise ConfigError(
                f"{option} of {name} is {path!r}, which is neither in {Path.cwd()} nor beside the recipe: correct it, "
                "or write the absolute path that it has on the workers"
            )


def missing_files(specs: Sequence[Spec]) -> Iterator[str]:
    """A line for each deployment of a recipe whose files are not on this machine; workers elsewhere may have them."""
    for spec in specs:
        recipe = Recipe.model_validate(spec.parameters["recipe"])
        missing = [path for _, path in _files(recipe) if Path(path).is_absolute() and not exists(path)]
        if missing:
            more = f" and {len(missing) - 1} more files are" if len(missing) > 1 else " is"
            yield f"rlhf/{spec.name}: {missing[0]}{more} not on this machine; its runs fail where they are missing"


def _files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The options that name files or directories, with their values."""
    yield from recipe.paths()
    if recipe.pretrain.checkpoint is not None:
        yield "pretrain.checkpoint", recipe.pretrain.checkpoint
    if recipe.compute.accelerate_config is not None:
        yield "compute.accelerate_config", recipe.compute.accelerate_config
    for option, path in recipe.labeling.files.items() if recipe.labeling is not None else ():
        yield f"labeling.{option}", path


def deploy(names: Sequence[str] = (), slots: int | None = None) -> list[str]:
    """Create or update pools and deployments on the server at PREFECT_API_URL; returns the names, pools first.

    Logs which files of recipes are not on this machine. Raises NotReady for a server that fails, after the retries of
    Prefect's client, and ConfigError for a recipe with relative paths that lead nowhere.
    """
    pools, specs = read_file()
    recipes = recipe_specs(next(spec for spec in specs if spec.name == PIPELINE), names)
    specs += recipes
    for line in missing_files(recipes):
        log.warning(line)
    try:
        with get_client(sync_client=True) as client:
            for name, pool in pools.items():
                set_up_pool(client, name, pool, slots if name == TRAIN else None)
        return [*(f"pool {name}" for name in pools), *map(set_up_deployment, specs)]
    except (httpx.HTTPStatusError, DeploymentApplyError, ValueError) as error:  # ValueError: an answer without JSON
        statuses = [cause.response.status_code for cause in causes(error) if isinstance(cause, httpx.HTTPStatusError)]
        if not any(status >= SERVER_FAILS for status in statuses):
            raise
        raise NotReady(
            f"Prefect answers {max(statuses)}, so not everything was deployed: `rlhf status` shows the servers, and "
            "`rlhf deploy` creates what is missing"
        ) from error


def accelerators() -> int:
    """The accelerators that nvidia-smi lists on this machine; 1 where there are none."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            env=child_environment("program", os.environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 1
    return max(1, len(listed.stdout.splitlines()))


def set_up_pool(client: SyncPrefectClient, name: str, pool: Pool, limit: int | None) -> None:
    """Create a pool, or update an existing one's description and, if `limit` is set, its limit."""
    wanted: dict[str, Any] = {"description": pool.description}
    wanted |= {} if limit is None else {"concurrency_limit": limit}
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template() if pool.type == "process" else {}
        slots = {"concurrency_limit": accelerators()} if name == TRAIN else {}
        client.create_work_pool(
            WorkPoolCreate(name=name, type=pool.type, base_job_template=template, **{**slots, **wanted})
        )
    else:
        client.update_work_pool(name, WorkPoolUpdate(**wanted))


@cache
def _undeployed(entrypoint: str) -> RunnerDeployment:
    """A deployment of a flow, with its parameters' schema, which takes longest and is the same for all recipes."""
    return RunnerDeployment.from_entrypoint(entrypoint, "undeployed")


def set_up_deployment(spec: Spec) -> str:
    """Create or update a deployment; returns FLOW/NAME."""
    flow, limit = _undeployed(spec.entrypoint), spec.concurrency_limit
    deployment = flow.model_copy(
        update={
            "name": spec.name,
            "description": spec.description or flow.description,
            "tags": list(spec.tags),
            "parameters": spec.parameters,
            "work_pool_name": spec.work_pool.name,
            "job_variables": spec.work_pool.job_variables,
            "storage": WorkingDirectory(),
        }
    )
    if limit is not None:
        deployment.concurrency_limit = limit.limit
        deployment.concurrency_options = ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy)
        )
    deployment.schedules = [
        DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=every.interval)), slug=every.slug)
        for every in spec.schedules
    ]  # without `active`: a paused schedule stays paused
    deployment.apply()
    return deployment.full_name
