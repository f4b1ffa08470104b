"""`rlhf deploy`: pools, limits and the deployments of `prefect.yaml` on a Prefect server, and one for each recipe.

Said twice, the second time changes nothing. What a person changed by hand and the file does not name stays: the limit
and the type of a pool that is there, and whether a schedule is paused.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, Field

from alignment.errors import ConfigError
from flows.recipe.schema import DATA_SCHEME, RECIPES, TOWN_SCHEME, Recipe, find_recipe, load_recipe, raw_values

FILE = Path(__file__).with_name("prefect.yaml")
PIPELINE, TRAIN = "pipeline", "train"


class Strict(BaseModel):
    """A part of `prefect.yaml` that is understood here; anything else in it is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(Strict):
    """A work pool: whose workers run its jobs."""

    type: Literal["process", "docker", "kubernetes"]
    description: str = ""


class PoolOf(Strict):
    """The pool of a deployment, and what its jobs are told."""

    name: str
    job_variables: dict[str, Any] = {}


class Every(Strict):
    """A schedule: every so many seconds."""

    interval: float = Field(gt=0)
    slug: str


class Limit(Strict):
    """How many runs of a deployment there are at once, and what becomes of more."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class Spec(Strict):
    """A deployment. Without a description it has its flow's."""

    name: str
    entrypoint: str
    work_pool: PoolOf
    description: str = ""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    pull: tuple[dict[str, Any], ...] = ()
    schedules: tuple[Every, ...] = ()
    concurrency_limit: Limit | None = None


class Change(BaseModel):
    """What was done about a pool or a deployment: `made`, `changed` with what, or nothing."""

    model_config = ConfigDict(frozen=True)

    name: str
    what: Literal["made", "changed", "as it was"]
    fields: tuple[str, ...] = ()


def read_file(path: Path = FILE) -> tuple[dict[str, Pool], list[Spec]]:
    """The pools and the deployments of a prefect.yaml."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    pools = {name: Pool.model_validate(pool) for name, pool in values["definitions"]["pools"].items()}
    return pools, [Spec.model_validate(one) for one in values["deployments"]]


def recipe_specs(pipeline: Spec, names: Sequence[str]) -> list[Spec]:
    """The pipeline once for each recipe of the package and each that is named, with every value filled in.

    A recipe that reads relative files runs in the directory where this was said, so that they are found.
    """
    own = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
    found: dict[str, Spec] = {}
    for name in [*own, *names]:
        recipe = load_recipe(name)
        if recipe.name == pipeline.name or (recipe.name in found and name not in own):
            raise ConfigError(f"there is a deployment {recipe.name} already: give the recipe {name} another `name`")
        here = ({"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}},)
        found[recipe.name] = pipeline.model_copy(
            update={
                "name": recipe.name,
                "description": recipe.description,
                "tags": (*pipeline.tags, "recipe"),
                "parameters": {"recipe": _filled(recipe.model_dump(mode="json"), raw_values(find_recipe(name)))},
                "pull": here if _reads_relative_files(recipe) else (),
            }
        )
    return list(found.values())


def _filled(values: Any, given: Any) -> Any:
    """All values of a recipe, but data://NAME, and where data can be had, as its file gives them."""
    if isinstance(values, dict) and isinstance(given, dict):
        return values | {name: _filled(values.get(name), value) for name, value in given.items()}
    if isinstance(values, list) and isinstance(given, list):
        return [_filled(value, one) for value, one in zip(values, given, strict=True)]
    return given if isinstance(given, str) and (given.startswith(DATA_SCHEME) or values is None) else values


def _reads_relative_files(recipe: Recipe) -> bool:
    paths = [path for _, path in recipe.paths() if not path.startswith(TOWN_SCHEME)]
    return any(not Path(path).is_absolute() and (path.startswith(".") or Path(path).exists()) for path in paths)


def deploy(names: Sequence[str] = (), slots: int | None = None) -> list[Change]:
    """Set all of it up on the server that PREFECT_API_URL names; what was done, pools first."""
    pools, specs = read_file()
    pipeline = next(one for one in specs if one.name == PIPELINE)
    specs += recipe_specs(pipeline, names)
    flows: dict[str, Flow[..., Any]] = {one: load_flow_from_entrypoint(one) for one in {s.entrypoint for s in specs}}
    with get_client(sync_client=True) as client:
        changes = [set_up_pool(client, name, pool, slots if name == TRAIN else None) for name, pool in pools.items()]
        return changes + [set_up_deployment(client, spec, flows[spec.entrypoint]) for spec in specs]


def accelerators() -> int:
    """The accelerators that nvidia-smi lists on this machine; 1 where there are none."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 1
    return max(1, len(listed.stdout.splitlines()))


def set_up_pool(client: SyncPrefectClient, name: str, pool: Pool, limit: int | None) -> Change:
    """Make a pool, or give one that is there the description and the limit, if one is named."""
    wanted: dict[str, Any] = {"description": pool.description}
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        wanted |= {"concurrency_limit": limit or (accelerators() if name == TRAIN else None)}
        template = ProcessWorker.get_default_base_job_template() if pool.type == "process" else {}
        client.create_work_pool(WorkPoolCreate(name=name, type=pool.type, base_job_template=template, **wanted))
        return Change(name=f"pool {name}", what="made")
    wanted |= {} if limit is None else {"concurrency_limit": limit}
    fields = tuple(field for field, value in wanted.items() if getattr(there, field) != value)
    if fields:
        client.update_work_pool(name, WorkPoolUpdate(**{field: wanted[field] for field in fields}))
    return _change(f"pool {name}", fields)


def set_up_deployment(client: SyncPrefectClient, spec: Spec, flow: Flow[..., Any]) -> Change:
    """Make a deployment, or change what is different in the one that is there."""
    wanted = _wanted(spec, flow)
    name = f"{flow.name}/{spec.name}"
    try:
        there = client.read_deployment_by_name(name)
    except ObjectNotFound:
        client.create_deployment(client.create_flow_from_name(flow.name), spec.name, **wanted)
        return Change(name=name, what="made")
    fields = tuple(field for field, value in wanted.items() if _shown(field, value) != _present(there, field))
    if fields:
        client.update_deployment(there.id, DeploymentUpdate(**{field: wanted[field] for field in fields}))
    return _change(name, fields)


def _wanted(spec: Spec, flow: Flow[..., Any]) -> dict[str, Any]:
    intervals = [(one.slug, IntervalSchedule(interval=timedelta(seconds=one.interval))) for one in spec.schedules]
    schedules = [DeploymentScheduleCreate(schedule=each, slug=slug, active=True) for slug, each in intervals]
    limit = spec.concurrency_limit
    wanted = {
        "entrypoint": spec.entrypoint,
        "description": spec.description or (flow.description or ""),
        "tags": list(spec.tags),
        "parameters": spec.parameters,
        "parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True),
        "enforce_parameter_schema": True,
        "work_pool_name": spec.work_pool.name,
        "job_variables": spec.work_pool.job_variables,
        "pull_steps": list(spec.pull),
        "schedules": schedules,
    }
    if limit is not None:
        options = ConcurrencyOptions.model_validate({"collision_strategy": limit.collision_strategy})
        wanted |= {"concurrency_limit": limit.limit, "concurrency_options": options}
    return wanted


def _shown(field: str, value: Any) -> Any:
    """A wanted value as `_present` reads it from the server."""
    return sorted(_schedules(value)) if field == "schedules" else value


def _present(there: DeploymentResponse, field: str) -> Any:
    """What the server has; whether a schedule is paused is a person's business."""
    if field == "schedules":
        return sorted(_schedules(there.schedules))
    if field == "pull_steps":
        return there.pull_steps or []
    if field == "concurrency_limit":
        return None if there.global_concurrency_limit is None else there.global_concurrency_limit.limit
    return getattr(there, field)


def _schedules(schedules: Sequence[Any]) -> Iterator[tuple[str, float]]:
    for one in schedules:
        interval = getattr(one.schedule, "interval", None)
        yield str(one.slug), interval.total_seconds() if interval is not None else 0.0


def _change(name: str, fields: tuple[str, ...]) -> Change:
    return Change(name=name, what="changed" if fields else "as it was", fields=fields)


def told(changes: Sequence[Change]) -> Mapping[str, int]:
    """How many of each kind."""
    kinds = [change.what for change in changes]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
