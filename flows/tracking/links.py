"""Links between the servers' pages: from a flow run in Prefect to MLflow and Label Studio, and back.

A link that cannot be created does not stop training: a warning is logged. If browsers reach MLflow at another address
than flows do, as in a cluster, set RLHF_MLFLOW_PAGES to that address.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httpx
import mlflow
from mlflow import MlflowClient, get_tracking_uri
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

log = logging.getLogger(__name__)
TAG_PAGE, TAG_NOTE = "prefect.flow_run_url", "mlflow.note.content"
TAG_PROJECT = "label_studio."
TRAINING = "?workflowType=machine_learning"  # without it MLflow's pages open in a mode that hides the registry


def back_tags() -> dict[str, str]:
    """Tags and note of an MLflow run that link to the page of the active flow run; empty without one."""
    page = url_for("flow-run", obj_id=str(flow_run.id)) if flow_run.id else None
    return {} if page is None else {TAG_PAGE: page, TAG_NOTE: f"[{flow_run.name} in Prefect]({page})"}


def mlflow_page(run_id: str, part: str = "") -> str | None:
    """The URL of an MLflow run's page, or of a part of it ("/artifacts"); None for a store without a server."""
    uri = os.environ.get("RLHF_MLFLOW_PAGES", get_tracking_uri())
    if not uri.startswith("http"):
        return None
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    return f"{_without_login(uri)}/#/experiments/{experiment}/runs/{run_id}{part}{TRAINING}"


def model_page(name: str, version: str) -> str | None:
    """The URL of a registered version's page; None for a store without a server."""
    uri = os.environ.get("RLHF_MLFLOW_PAGES", get_tracking_uri())
    return f"{_without_login(uri)}/#/models/{name}/versions/{version}{TRAINING}" if uri.startswith("http") else None


def registry_page(name: str = "") -> str | None:
    """The URL of a registered model's page, or of the whole registry; None for a store without a server."""
    uri = os.environ.get("RLHF_MLFLOW_PAGES", get_tracking_uri())
    part = f"/{name}" if name else ""
    return f"{_without_login(uri)}/#/models{part}{TRAINING}" if uri.startswith("http") else None


def compare_page(name: str, runs_by_version: Mapping[str, str]) -> str | None:
    """The URL of MLflow's comparison of versions of a model; None for a store without a server."""
    uri = os.environ.get("RLHF_MLFLOW_PAGES", get_tracking_uri())
    if not uri.startswith("http"):
        return None
    runs = quote(json.dumps(dict(runs_by_version), separators=(",", ":")))
    query = f"?name={quote(json.dumps(name))}&runs={runs}&{TRAINING[1:]}"  # MLflow reads the name in first place only
    return f"{_without_login(uri)}/#/compare-model-versions{query}"


@dataclass(frozen=True)
class RunPages:
    """Links from one page of MLflow to runs of an experiment, by name, whatever address the browser has."""

    experiment: str
    runs: Mapping[str, str]

    def link(self, text: str, run: str, part: str = "") -> str:
        """A link to a run's page, or a part of it, as Markdown."""
        return f"[{text}](#/experiments/{self.experiment}/runs/{self.runs[run]}{part}{TRAINING})"

    def image(self, name: str, text: str) -> str:
        """A figure of the release's report, as Markdown."""
        return f"![{text}](get-artifact?path=report/{name}/{name}.png&run_uuid={self.runs['release']})"


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def link(key: str, url: str | None, what: str) -> None:
    """Create a link on the page of the active flow run; does nothing outside of one, or without a URL."""
    if url is None or not flow_run.id:
        return
    try:
        create_link_artifact(key=key, link=url, description=what)
    except (httpx.HTTPError, OSError) as error:
        log.warning("the link to %s could not be created on the flow run's page: %s", url, error)


def link_pipeline(run_id: str) -> None:
    """Link the pipeline's run in MLflow, and its future report, from the flow run's page."""
    link("mlflow-run", mlflow_page(run_id), "MLflow: figures, plots and stages of this run")
    link("report", mlflow_page(run_id, "/artifacts"), "the report, under `report/` when the run has finished")


def link_stage(run_id: str, stage: str) -> None:
    """Link the MLflow run of a stage that runs outside of a pipeline."""
    link("mlflow-run", mlflow_page(run_id), f"MLflow: the stage {stage}")


def link_projects(urls: Mapping[str, str]) -> None:
    """Link the Label Studio projects, by kind of task: on the flow run's page and as tags of the active MLflow run."""
    active = mlflow.active_run()
    for kind, url in urls.items():
        if active is not None:
            MlflowClient().set_tag(active.info.run_id, f"{TAG_PROJECT}{kind}", url)
        link(f"label-studio-{kind}", url, f"Label Studio: {kind} tasks")


def link_known_projects(run_id: str) -> None:
    """Link the projects of a cached labelling stage, from the tags of its MLflow run."""
    tags = MlflowClient().get_run(run_id).data.tags
    link_projects({tag.removeprefix(TAG_PROJECT): url for tag, url in tags.items() if tag.startswith(TAG_PROJECT)})
