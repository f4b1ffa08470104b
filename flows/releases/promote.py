"""Promotion: sets an alias on a registered version whose release passed its gate."""

from typing import Annotated, Any

import mlflow
from mlflow.entities import Run
from prefect import flow
from pydantic import Field

from alignment.errors import ArtifactError, ConfigError, GateError
from flows.releases.lineage import resolve
from flows.releases.report import TAG_RELEASE, load_release
from flows.tracking import links, runs

FEWEST_WORDS = 3
TAG_DESPITE = "rlhf.promoted_despite"
Model = Annotated[
    str,
    Field(
        pattern=r"^(models:/)?[\w.-]+(@[\w.-]+|/[0-9]+)$",
        description="a registered version: NAME/VERSION or NAME@ALIAS, as in policy@candidate",
    ),
]
Alias = Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="the alias to set; the served model is the champion")]
Despite = Annotated[
    str,
    Field(
        description="why to promote it although the gate was missed, in three words or more; stored with the version. "
        "Empty: the gate must be passed"
    ),
]


@flow(name="promote", persist_result=False)
def promote(model: Model = "policy@candidate", alias: Alias = "champion", despite: Despite = "") -> str:
    """Set an alias on a registered version, if its release passed the gate."""
    promoted = promote_version(model, alias, despite)
    name, number = promoted.removeprefix("models:/").split("/")
    links.link("registered-model", links.model_page(name, number), f"MLflow: {promoted}, now {alias}")
    return promoted


def promote_version(model: str, alias: str = "champion", despite: str = "") -> str:
    """Set the alias and return "models:/NAME/VERSION".

    Raises GateError when the version's release missed its gate or there is no release, unless `despite` gives a reason
    to promote it anyway.
    """
    if despite and len(despite.split()) < FEWEST_WORDS:
        raise ConfigError(f"despite: {despite!r} is too short: give the reason in {FEWEST_WORDS} words or more")
    name, number = resolve(model)
    problem = gate_problem(name, number)
    if problem and not despite:
        raise GateError(f"{name}/{number} is not promoted: {problem}. To promote it anyway, give a reason in `despite`")
    client = mlflow.MlflowClient()
    if problem:
        client.set_model_version_tag(name, number, TAG_DESPITE, f"{despite} ({problem})")
    client.set_registered_model_alias(name, alias, number)
    return f"models:/{name}/{number}"


def gate_problem(name: str, number: str) -> str:
    """Why a version must not be promoted; empty when its newest release passed the gate."""
    try:
        manifest = release_of(name, number)
    except ArtifactError as error:
        return str(error)
    gate = manifest["gate"]
    return "" if gate["passed"] else f"release {manifest['release']} missed its gate: {'; '.join(gate['missed'])}"


def release_of(name: str, number: str) -> dict[str, Any]:
    """The manifest of the newest release that contains this version. Raises ArtifactError when there is none."""
    version = mlflow.MlflowClient().get_model_version(name, number)
    stage = version.tags.get(runs.TAG_STAGE, "")
    pipeline_runs = runs.search({f"rlhf.run.{stage}": str(version.run_id)}) if stage and version.run_id else []
    releases: list[Run] = [run for run in pipeline_runs if TAG_RELEASE in run.data.tags]
    if not releases:
        raise ArtifactError(f"no release contains {name}/{number}; run its recipe to the end")
    return load_release(releases[0].data.tags[TAG_RELEASE])
