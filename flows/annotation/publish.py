"""How a collection is going, where people look: the page in MLflow, links and a table on the flow run in Prefect."""

import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from labeling.collection import Collection
from labeling.config import QualityOptions
from labeling.store.store import Store

if TYPE_CHECKING:
    from labeling.reports.report import ProjectReport

log = logging.getLogger(__name__)
PAGE = "status.html"


def announce(collection: Collection, store: Store, options: QualityOptions, out: Path) -> None:
    """Write the page to `out`, send it to the active MLflow run, and tell the Prefect run, where there are such.

    A server that cannot be told does not stop people from working: it is logged, and told the next time.
    """
    from mlflow.exceptions import MlflowException

    from labeling.reports.page import status_page
    from labeling.reports.report import reports

    numbers = [batch.project.id for batch in collection.batches]
    found = [one for one in reports(store, numbers, options, collection.answers) if not one.status.deleted]
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(status_page(found), encoding="utf-8")
    try:
        to_mlflow(out / PAGE)
        to_prefect(found)
    except (MlflowException, httpx.HTTPError, OSError) as error:
        log.warning("the status of the labelling could not be sent, it is in %s: %s", out / PAGE, error)


def to_mlflow(page: Path) -> None:
    """Among the output of the stage's run, where the last page takes the place of those before."""
    import mlflow

    from flows.stack import outages
    from flows.tracking import runs

    active = mlflow.active_run()
    if active is not None and outages.mlflow_answers():  # people go on to work, and the page is sent the next time
        mlflow.MlflowClient().log_artifact(active.info.run_id, str(page), runs.OUTPUT)


def to_prefect(found: "Sequence[ProjectReport]") -> None:
    """The status as a table, which links to each project."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext, TaskRunContext

    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    create_markdown_artifact(markdown=as_markdown(found), key="labeling-status", description="the labelling so far")


def as_markdown(found: "Sequence[ProjectReport]") -> str:
    """The status as Markdown tables; what people wrote stays text."""
    lines = ["| project | judged | an hour | expected end (UTC) | agreement | alpha |", "| --- " * 6 + "|"]
    for one in found:
        row, rate = one.status, one.agreement.overall
        end = "" if row.expected_end is None else f"{row.expected_end:%Y-%m-%d %H:%M}"
        agreed = "" if rate.share is None else f"{rate.share:.0%} ({rate.low:.0%} to {rate.high:.0%})"
        alpha = "" if one.agreement.alpha is None else f"{one.agreement.alpha:.2f}"
        link = f"[{_text(row.title)}]({row.url}/projects/{row.number}/data?labeling=1)"
        lines.append(f"| {link} | {row.done} of {row.needed} | {row.per_hour:.1f} | {end} | {agreed} | {alpha} |")
    lines += ["", "| annotator | judgements | agreement | reliability | concerns |", "| --- " * 5 + "|"]
    for one in found:
        for person in one.crew:
            name = one.names.get(person.annotator_id, f"account {person.annotator_id}")
            share = "" if person.agreement.share is None else f"{person.agreement.share:.0%}"
            eta = "" if person.reliability is None else f"{person.reliability:.2f}"
            doubts = _text("; ".join(person.concerns))
            lines.append(f"| {_text(name)} | {person.judgements} | {share} | {eta} | {doubts} |")
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Text in a cell of a table: no HTML, no new cell, no link."""
    plain = escape(" ".join(text.split()))
    return "".join(f"\\{letter}" if letter in "\\|[]()*_`!" else letter for letter in plain)
