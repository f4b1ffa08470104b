"""Stage and pipeline runs in MLflow: searched by key, opened, described. All tags of runs are defined here."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from platform import node
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from alignment.artifacts import Artifact, content_digest, fingerprint
from flows.failures import NotYet
from flows.home import home_directory
from flows.locks import try_lock
from flows.stack import outages
from flows.tracking import links, logs
from flows.tracking.layout import OUTPUT
from flows.tracking.provenance import git_commit, versions

log = logging.getLogger(__name__)
EXPERIMENT = "rlhf"
TAG_STAGE, TAG_KEY, TAG_DIGEST, TAG_MODEL = "rlhf.stage", "rlhf.key", "rlhf.digest", "rlhf.model"
TAG_SECONDS, TAG_INPUT, TAG_VERSION = "rlhf.seconds", "rlhf.input.", "rlhf.stage_version"
TAG_STAGE_RUN = "rlhf.run."  # and a stage: its run, on the pipeline's run
TAG_FLOW_RUN, TAG_RECIPE = "prefect.flow_run_id", "rlhf.recipe"
COMPUTE_TAGS = {name: f"rlhf.{name}" for name in ("processes", "device", "precision", "gpu")}
TAG_PIPELINE = "rlhf.pipeline"  # identifies recipe and home of a run that was started in a terminal
TAG_REASON = "rlhf.reason"  # why a run failed or was killed
LONGEST_TAG = 5000
LONGEST_PARAMETER = 6000
PARAMETERS_AT_ONCE = 100


def experiment_id() -> str:
    """The experiment of this project's runs, created if it is missing."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(EXPERIMENT))
    except MlflowException:  # another process created it at this moment
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def search(conditions: Mapping[str, str], status: str = "", limit: int = 50) -> list[Run]:
    """Runs by tags, newest first."""
    if any("'" in value for value in conditions.values()):
        return []  # our tags have no quotes, and MLflow's filters cannot escape them
    terms = [f"tags.`{name}` = '{value}'" for name, value in conditions.items()]
    terms += [f"attributes.status = '{status}'"] if status else []
    return list(
        MlflowClient().search_runs(
            [experiment_id()], " and ".join(terms), max_results=limit, order_by=["attributes.start_time DESC"]
        )
    )


def open_stage_run(
    stage: str,
    key: str,
    *,
    config: Any,
    seed: int,
    version: int,
    inputs: Mapping[str, Artifact],
    parent: str | None,
    files: Sequence[Path] = (),
    run_name: str = "",
) -> str:
    """The id of the run for this key: an unfinished run, or a new one with parameters, tags and inputs."""
    unfinished = [run for run in search({TAG_KEY: key, TAG_STAGE: stage}) if run.info.status != "FINISHED"]
    if unfinished:
        if unfinished[0].info.status == "RUNNING":
            log.warning(
                "an earlier attempt at stage '%s' has no end state (killed, out of memory, a machine that went down, "
                "or no connection to MLflow): resuming from its files",
                stage,
            )
        return str(unfinished[0].info.run_id)
    tags = {TAG_STAGE: stage, TAG_KEY: key, TAG_VERSION: str(version), **provenance_tags(), **input_tags(inputs)}
    tags |= links.back_tags()
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    run_id = str(MlflowClient().create_run(experiment_id(), tags=tags, run_name=run_name or stage).info.run_id)
    for copy in search({TAG_KEY: key, TAG_STAGE: stage}, status="RUNNING"):
        if (
            copy.info.run_id != run_id and not copy.data.params
        ):  # the request was repeated because its response was lost
            MlflowClient().delete_run(copy.info.run_id)
    log_params(run_id, {**flatten(config), "run_seed": seed})
    log_inputs(run_id, inputs, files)
    return run_id


def provenance_tags() -> dict[str, str]:
    """The commit and the versions, as tags."""
    return {"mlflow.source.git.commit": git_commit(), "rlhf.versions": json.dumps(versions(), sort_keys=True)}


def input_tags(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """One tag for each input, used by `rlhf lineage`."""
    fields = {"stage", "key", "run_id", "digest", "model"}
    return {
        TAG_INPUT + name: json.dumps(artifact.model_dump(mode="json", include=fields), sort_keys=True)
        for name, artifact in inputs.items()
    }


def read_inputs(tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The inputs that `input_tags` wrote, by name."""
    return {name.removeprefix(TAG_INPUT): json.loads(tags[name]) for name in tags if name.startswith(TAG_INPUT)}


def log_params(run_id: str, values: Mapping[str, Any]) -> None:
    """Log flat options as parameters; long text is truncated, the full text is in `provenance.json`."""
    params = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in values.items()]
    for start in range(0, len(params), PARAMETERS_AT_ONCE):
        MlflowClient().log_batch(run_id, params=params[start : start + PARAMETERS_AT_ONCE], synchronous=True)


def flatten(values: Mapping[str, Any] | BaseModel, prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to dotted names, for parameters of a run."""
    flat: dict[str, Any] = {}
    items = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    for key, value in items.items():
        name = f"{prefix}{key}"
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and value):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def log_inputs(run_id: str, inputs: Mapping[str, Artifact], files: Sequence[Path] = ()) -> None:
    """Log the inputs and the files that the stage reads as data sets of the run, for MLflow's pages."""
    datasets = [
        DatasetInput(
            Dataset(
                name=artifact.stage,
                digest=artifact.digest[:32],
                source_type="mlflow_run",
                source=json.dumps({"run_id": artifact.run_id, "path": OUTPUT, "model": artifact.model}),
            ),
            tags=[InputTag("mlflow.data.context", name)],
        )
        for name, artifact in inputs.items()
    ]
    datasets += [
        DatasetInput(
            Dataset(path.name, content_digest(path)[:32], source_type="local", source=path.resolve().as_uri()),
            tags=[InputTag("mlflow.data.context", "file")],
        )
        for path in files
    ]
    if datasets:
        MlflowClient().log_inputs(run_id, datasets)


def fetch_output(run_id: str, into: Path, name: str = "") -> Path:
    """Download a run's output, or one file of it. Raises MlflowException when it does not exist."""
    path = f"{OUTPUT}/{name}" if name else OUTPUT
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(into)))


@contextmanager
def active(**arguments: Any) -> Iterator[str]:
    """An active MLflow run; `arguments` are those of `mlflow.start_run`.

    It ends as FINISHED; SCHEDULED, if it waits for people; FAILED with the reason; or KILLED, if it was stopped.
    """
    run_id = str(mlflow.start_run(**arguments).info.run_id)
    try:
        clear_reason(run_id)
        yield run_id
    except NotYet:
        mlflow.end_run("SCHEDULED")  # MLflow has no state for waiting
        raise
    except BaseException as error:
        end(run_id, error)
        raise
    mlflow.end_run()


def end(run_id: str, error: BaseException) -> None:
    """End the active run with the reason, as a tag and as its description. Errors of MLflow are logged, not raised.

    If MLflow is not available the run stays RUNNING until it is resumed.
    """
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    message = str(error) if status == "FAILED" else "stopped; the same command resumes"
    try:
        with outages.without_retries():
            mlflow.end_run(status)
            reason = f"{type(error).__name__}: {message}"[:LONGEST_TAG]
            MlflowClient().set_tag(run_id, TAG_REASON, reason)
            note = "\n\n".join([reason, links.back_tags().get(links.TAG_NOTE, "")]).strip()
            MlflowClient().set_tag(run_id, links.TAG_NOTE, note)
    except MlflowException as unreachable:
        log.warning("run %s could not be set to %s in MLflow (%s)", run_id, status, unreachable)


def clear_reason(run_id: str) -> None:
    """Remove the reason of an earlier end from a run that is resumed."""
    client = MlflowClient()
    tags = client.get_run(run_id).data.tags
    for name in (TAG_REASON, links.TAG_NOTE):
        if TAG_REASON in tags and name in tags:
            client.delete_tag(run_id, name)
    for name, value in links.back_tags().items():
        client.set_tag(run_id, name, value)


@contextmanager
def pipeline_run(
    name: str, *, recipe: Any, flow_run_id: str = "", alone: bool = False, run_name: str = ""
) -> Iterator[str]:
    """The pipeline's MLflow run, under which stages are nested; a resumed flow run continues the same one.

    `alone`: the flow run itself cannot be resumed, as in a terminal. Then the last run of the same recipe in this home
    is continued if it is unfinished (killed, for example) and no other process is working on it.
    """
    pipeline_id = f"pipeline-{fingerprint([node(), str(home_directory()), flatten(recipe)])[:16]}" if alone else ""
    tags = {
        TAG_RECIPE: name,
        TAG_FLOW_RUN: flow_run_id,
        **({TAG_PIPELINE: pipeline_id} if alone else {}),
        **provenance_tags(),
        **links.back_tags(),
    }
    with try_lock(home_directory(), pipeline_id) as free:
        if alone:
            unfinished = [
                run for run in search({TAG_PIPELINE: pipeline_id}, limit=1) if free and run.info.status != "FINISHED"
            ]
        else:
            unfinished = search({TAG_FLOW_RUN: flow_run_id}) if flow_run_id else []
        arguments = {"experiment_id": experiment_id(), "run_name": run_name or name, "tags": tags}
        resumed = {"run_id": unfinished[0].info.run_id} if unfinished else {}
        with active(**(resumed or arguments), nested=True) as run_id:  # below the run of a sweep, if there is one
            if unfinished:
                MlflowClient().set_tag(run_id, TAG_FLOW_RUN, flow_run_id)
            if not unfinished or not unfinished[0].data.params:  # the earlier attempt may have been killed before this
                log_params(run_id, flatten(recipe))
            with logs.log_to_file(run_id, run_id=run_id, flow_run_id=flow_run_id, recipe=name):
                yield run_id
