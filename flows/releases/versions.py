"""Registered versions by what reviewers call them, and the releases that they belong to."""

import re

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from alignment.errors import ArtifactError, ConfigError
from flows.tracking import runs

CHAMPION, CANDIDATE = "champion", "candidate"
TAG_RELEASE = "rlhf.release"
TAG_MODEL_OF = "rlhf.model."  # and base, sft, reward or policy: the version in the release


def resolve(model: str) -> tuple[str, str]:
    """Name and number of a version. Raises ConfigError for invalid syntax, ArtifactError for an unknown version."""
    match = re.fullmatch(r"(?:models:/)?([\w.-]+)(?:@([\w.-]+)|/(\d+))?", model)
    if match is None:
        raise ConfigError(
            f"'{model}' is not a model version: write NAME, NAME@ALIAS or NAME/VERSION (town-policy@champion)"
        )
    name, alias, number = match.groups()
    client = MlflowClient()
    try:
        if alias:
            return name, str(client.get_model_version_by_alias(name, alias).version)
        if number:
            return name, str(client.get_model_version(name, number).version)
    except MlflowException as error:
        raise ArtifactError(f"{model} is not in the registry: {_known(name)}") from error
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise ArtifactError(f"there is no model '{name}': {_known(name)}")
    return name, str(max(int(version.version) for version in versions))


def _known(name: str) -> str:
    """The existing models or versions, for error messages."""
    client = MlflowClient()
    versions = client.search_model_versions(f"name = '{name}'")
    if versions:
        aliases = client.get_registered_model(name).aliases
        numbers = ", ".join(sorted((str(version.version) for version in versions), key=int))
        return f"{name} has versions {numbers} and aliases {', '.join(sorted(aliases)) or '(none)'}"
    names = ", ".join(sorted(str(item.name) for item in client.search_registered_models()))
    return f"registered are {names}" if names else "nothing is registered yet; `rlhf run town` registers the first"


def aliased(name: str, alias: str) -> str:
    """The number of the version that has an alias; "" if none has."""
    try:
        return str(MlflowClient().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return ""
        raise


def release_run_of(name: str, number: str) -> Run:
    """The pipeline's run of the newest release with this version. Raises ArtifactError when there is none."""
    version = MlflowClient().get_model_version(name, number)
    stage = version.tags.get(runs.TAG_STAGE, "")
    pipeline_runs = (
        runs.search({f"{runs.TAG_STAGE_RUN}{stage}": str(version.run_id)}) if stage and version.run_id else []
    )
    releases = [run for run in pipeline_runs if TAG_RELEASE in run.data.tags]
    releases = [run for run in releases if f"models:/{name}/{number}" in models_of(run).values()]
    if not releases:
        raise ArtifactError(f"no release contains {name}/{number}; run its recipe to the end")
    return releases[0]


def models_of(run: Run) -> dict[str, str]:
    """The versions in a release, by their part: base, sft, reward and policy."""
    tags = run.data.tags
    return {tag.removeprefix(TAG_MODEL_OF): tags[tag] for tag in tags if tag.startswith(TAG_MODEL_OF)}
