"""The status of a collection, published to a real MLflow store and to a run of a real Prefect server."""

import asyncio
import logging
from pathlib import Path

import mlflow
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.annotation.publish import PAGE, as_markdown, publish_status
from flows.tracking import runs
from flows.tracking.layout import OUTPUT
from labeling.collection import Batch, Collection
from labeling.config import QualityOptions
from labeling.names import uid_of
from labeling.reports.report import reports
from labeling.store.store import Store
from labeling.tasks.projects import Project
from tests.labeling.reports.test_page import filled

pytestmark = pytest.mark.server
URL = "http://127.0.0.1:8080"


def collection(store: Store | None = None) -> Collection:
    """A collection of two projects, with the tasks that the store knows of them."""
    projects = {1: "ranking", 2: "pairwise"}
    rows = {} if store is None else {seen.number: store.current(seen.project) for seen in store.projects()}
    return Collection(
        batches=tuple(
            Batch(
                project=Project(id=number, kind=kind, title=kind, overlap=3, screen_hash="1a2b3c4d", url=URL),  # type: ignore[arg-type]
                tasks=(),
                task_ids={uid_of(row): int(row["id"]) for row in rows.get(number, ())},
            )
            for number, kind in projects.items()
        )
    )


def test_mlflow_has_the_page_and_prefect_the_links_and_the_table(workplace: Path, tmp_path: Path) -> None:
    store = Store()
    filled(store)

    @flow(name="labelling", persist_result=False)
    def labelling() -> str:
        with mlflow.start_run(experiment_id=runs.experiment_id()) as run:
            for _ in range(2):  # the second page takes the place of the first
                publish_status(collection(store), store, QualityOptions(), tmp_path)
            return str(run.info.run_id)

    run_id = labelling()
    (kept,) = mlflow.MlflowClient().list_artifacts(run_id, OUTPUT)
    assert kept.path == f"{OUTPUT}/{PAGE}" and (tmp_path / PAGE).read_text().count("<svg") == 4

    async def told() -> dict[str, str]:
        async with get_client() as client:
            found = await client.read_artifacts()
        newest_last = sorted(found, key=lambda one: str(one.created))  # other tests use this server too
        return {str(one.key): str(one.data) for one in newest_last}

    artifacts = asyncio.run(told())
    table = artifacts["labeling-status"]
    assert all(f"{URL}/projects/{number}/data?labeling=1" in table for number in (1, 2))
    assert "87 of 120" in table and "leaves 100% of rankings" in table and "<script" not in table


def test_without_servers_the_page_is_written_and_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Path) -> None:
        raise mlflow.exceptions.MlflowException("the server is away")

    publish_status(collection(), Store(), QualityOptions(), tmp_path / "alone")
    assert "No collections are known yet" in (tmp_path / "alone" / PAGE).read_text()
    monkeypatch.setattr("flows.annotation.publish.to_mlflow", broken)
    with caplog.at_level(logging.WARNING, logger="flows.annotation.publish"):
        publish_status(collection(), Store(), QualityOptions(), tmp_path / "broken")
    assert "the server is away" in caplog.text and (tmp_path / "broken" / PAGE).exists()


def test_names_do_not_break_out_of_the_table() -> None:
    store = Store()
    filled(store)
    table = as_markdown(reports(store))
    assert r"&lt;script&gt;document.title = &#x27;executed&#x27;&lt;/script&gt; $\\frac{x" in table
    assert all(line.count(" | ") == 7 for line in table.splitlines() if line.startswith("|"))
