"""`rlhf label sync` and `rlhf label status`, with a real server and without one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.annotation.label_studio import annotation_store
from flows.annotation.wait import sync_annotations
from flows.cli.main import app
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.errors import CollectionLost
from labeling.reports.report import reports
from labeling.server.client import LabelStudio
from labeling.simulation.crew import ranking_result
from tests.labeling.helpers import TOKEN, free_port, open_sets, response_set

CONFIG = LabelingConfig(
    title="at the terminal", rankings=RankingTasks(prompts=2, overlap=2), pairwise=PairwiseTasks(prompts=0)
)


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["label", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("labeling.server.transport.time.sleep", lambda _: None)
    return tmp_path


def test_without_a_server_and_a_project_the_next_step_is_told(home: Path) -> None:
    shown = rlhf("status")
    assert shown.exit_code == 0 and "as of the last sync" in shown.output and "`rlhf label open RECIPE" in shown.output
    assert rlhf("sync").exit_code == 1


@pytest.mark.server
def test_sync_and_status(home: Path, owner: LabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", owner.url)
    collection = open_sets(owner, CONFIG, [response_set(n) for n in range(2)], home / "out")
    (batch,) = collection.batches
    for task in batch.tasks:
        owner.annotate(batch.task_ids[task.uid], ranking_result(task.shown), 12.0)
    mine = (str(batch.project.id),)
    first, again = rlhf("sync", *mine), rlhf("sync", *mine)
    assert first.exit_code == 0, first.output
    assert "at the terminal ranking" in first.output and "first sync" in first.output
    assert "changes" in again.output and str(home / "annotations.db") in again.output
    (whole,) = json.loads(rlhf("sync", "--whole", "--json", *mine).stdout)
    assert whole["why"] == "requested" and whole["tasks_read"] == 2
    shown = rlhf("status", *mine)  # which syncs first
    assert "2 of 4 (50%)" in shown.output and "owner@rlhf.local" in shown.output and "12" in shown.output
    assert f"{owner.url}/projects/{batch.project.id}/data?labeling=1" in shown.output
    named = rlhf("status", "at", "the", "terminal", "ranking")
    assert "2 of 4 (50%)" in named.output and "12" in named.output
    unknown = rlhf("status", "no", "such", "collection")
    assert unknown.exit_code == 1 and "at the terminal ranking" in str(unknown.exception)
    listed = rlhf("collections", *mine)
    assert listed.exit_code == 0 and "at the terminal ranking" in listed.output and "2 of 4 (50%)" in listed.output
    looked = rlhf("show", "terminal")
    assert "ranking tasks, 2 annotators per task" in looked.output and "2 of 4 judged" in looked.output
    page = home / "pages" / "status.html"
    assert f"the page is {page}" in rlhf("status", "--html", str(page), *mine).output
    assert "at the terminal ranking" in page.read_text() and page.read_text().count("<svg") == 1
    owner.delete(f"/api/projects/{batch.project.id}/")
    assert "the project was deleted" in rlhf("sync", *mine).output
    row = reports(annotation_store())[0].status
    assert row.deleted and row.done == row.lost == 2
    assert "deleted on the server and are kept in the store" in rlhf("status", *mine).output
    with pytest.raises(CollectionLost, match=r"its 2 annotations are kept in .*annotations\.db\. Run the same"):
        sync_annotations(owner, collection, annotation_store())
