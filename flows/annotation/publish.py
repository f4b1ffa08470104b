"""Publishes the status of a collection: the page in MLflow, links and tables on the flow run in Prefect."""

import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path

import httpx
import mlflow
from mlflow.exceptions import MlflowException
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext, TaskRunContext

from flows.annotation import progress
from flows.annotation.accounts import accounts_by_server
from flows.annotation.planned import plans_of
from flows.stack import outages
from flows.tracking.layout import OUTPUT
from labeling.collection import Collection
from labeling.config import QualityOptions
from labeling.reports.page import status_page
from labeling.reports.report import ProjectReport, reports
from labeling.store.store import Store

log = logging.getLogger(__name__)
PAGE = "status.html"


def publish_status(collection: Collection, store: Store, options: QualityOptions, out: Path) -> None:
    """Write the page to `out` and publish it on the active MLflow and Prefect runs, if there are any.

    A server that does not answer does not interrupt the work: it is logged, and the next status is published.
    """
    numbers = [batch.project.id for batch in collection.batches]
    rows = reports(store, numbers, options, collection.answers, known=accounts_by_server(), plans=plans_of(collection))
    current = [report for report in rows if not report.status.deleted]
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(status_page(current), encoding="utf-8")
    try:
        to_mlflow(out / PAGE)
        to_prefect(current)
    except (MlflowException, httpx.HTTPError, OSError) as error:
        log.warning("the status of the labelling could not be published, it is in %s: %s", out / PAGE, error)


def to_mlflow(page: Path) -> None:
    """Upload the page to the output of the stage's run; it replaces the previous one."""
    active = mlflow.active_run()
    if active is not None and outages.mlflow_answers(mlflow.get_tracking_uri()):  # else the page is sent the next time
        mlflow.MlflowClient().log_artifact(active.info.run_id, str(page), OUTPUT)


def to_prefect(project_reports: Sequence[ProjectReport]) -> None:
    """The status as tables on the page of the active run, with a link to each project."""
    if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
        create_markdown_artifact(
            markdown=as_markdown(project_reports), key="labeling-status", description="status of the labelling"
        )


def as_markdown(project_reports: Sequence[ProjectReport]) -> str:
    """The status as Markdown tables; names and titles are escaped."""
    lines = [f"- [{_text(title)}]({url})" for title, url in progress.links(project_reports).items()]
    for columns, rows in progress.tables(project_reports):
        lines += ["", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        lines += [f"| {' | '.join(map(_text, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Escape text for a table cell: no HTML, no cell separator, no link."""
    plain = escape(" ".join(text.split()))
    return "".join(f"\\{letter}" if letter in "\\|[]()*_`!" else letter for letter in plain)
