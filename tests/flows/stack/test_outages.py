"""Servers that fail while a stage starts, runs or ends: afterwards everything is stored, exactly once."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import mlflow
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient

from alignment.config.stages import SFTConfig, TownConfig
from alignment.errors import RLHFError
from alignment.journal import Journal
from alignment.records import Prompt, Response, ResponseSet, read_records, write_records
from alignment.town import build_town
from flows.annotation.collect import collect
from flows.failures import StageStopped, friendly_errors
from flows.stack import outages
from flows.tracking import metrics, runs
from flows.tracking.metrics import METRICS_FILE, send_all
from labeling.config import CrewConfig, LabelingConfig, PairwiseTasks, RankingTasks
from labeling.errors import ServerUnavailable
from labeling.server.client import LabelStudio
from tests.flows.faulty import NOBODY, Server, Wire, until, wire
from tests.flows.tiny import run_stage, write_model
from tests.labeling.helpers import TOKEN, free_port

pytestmark = pytest.mark.server


# --- MLflow ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """A server that tests of this file kill; it runs at the beginning of each."""
    home = tmp_path_factory.mktemp("server")
    (home / "mlflow").mkdir()
    (home / "mlflow" / "mlflow.db").write_bytes(empty_store.read_bytes())
    server = Server("mlflow", home)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tracked(mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Stages log to that server, with the patience that the stack gives them."""
    for name, value in {**outages.retries(), "RLHF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(metrics, "INTERVAL_SECONDS", 0.2)
    for set_uri in (mlflow.set_tracking_uri, mlflow.set_registry_uri):
        set_uri(mlflow_server.url)
    yield mlflow_server
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)


def history(run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in MlflowClient().get_metric_history(run_id, name))


def log(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.log({"loss": 1.0 / step}, step)


def test_metrics_of_an_outage_are_sent_while_the_stage_still_works(tracked: Server) -> None:
    def work(out: Path, journal: Journal) -> Mapping[str, float]:
        run_id = mlflow.active_run().info.run_id  # type: ignore[union-attr]
        log(journal, 1, 2)
        until(lambda: len(history(run_id)) == 2)
        tracked.kill()
        log(journal, 3, 4)
        until(lambda: not outages.mlflow_answers(mlflow.get_tracking_uri()))
        log(journal, 5)
        tracked.start()
        until(lambda: len(history(run_id)) == 5)
        log(journal, 6)
        return {"loss": 0.1}

    made = run_stage("sft", work, config=SFTConfig(epochs=1))
    assert history(made.run_id) == [(step, 1.0 / step) for step in range(1, 7)]
    assert history(made.run_id, "final/loss") == [(0, 0.1)]


@pytest.mark.long
def test_a_stage_begins_and_ends_while_mlflow_is_away_and_registers_one_version(tracked: Server) -> None:
    def work(out: Path, journal: Journal) -> Mapping[str, float]:
        write_model(out / "model")
        log(journal, 1, 2)
        tracked.kill()
        back.append(tracked.start_later(2.0))
        return {"loss": 0.5}

    tracked.kill()
    back = [tracked.start_later(2.0)]
    made = run_stage("sft", work, config=SFTConfig(epochs=2), model="sft")
    for thread in back:
        thread.join(300)
    assert history(made.run_id) == [(1, 1.0), (2, 0.5)]
    assert [version.run_id for version in MlflowClient().search_model_versions("name = 'sft'")] == [made.run_id]
    assert [run.info.status for run in runs.search({runs.TAG_KEY: made.key})] == ["FINISHED"]
    assert run_stage("sft", work, config=SFTConfig(epochs=2), model="sft").cached


def test_a_long_outage_ends_the_stage_in_words_and_it_goes_on_afterwards(
    tracked: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def work(out: Path, journal: Journal) -> Mapping[str, float]:
        calls.append(1)
        log(journal, 1, 2)
        tracked.kill()
        return {"loss": 0.5}

    with monkeypatch.context() as impatient, pytest.raises(StageStopped) as ended:
        impatient.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        run_stage("sft", work, config=SFTConfig(epochs=3))
    told = str(ended.value)
    assert "'sft' stopped because MLflow" in told and "`rlhf up`" in told and "the same command resumes" in told
    (kept,) = (tmp_path / "artifacts").glob("sft-*.partial")
    assert str(kept) in told and mlflow.active_run() is None
    tracked.start()
    made = run_stage("sft", work, config=SFTConfig(epochs=3))
    assert len(calls) == 1 and history(made.run_id) == [(1, 1.0), (2, 0.5)]
    assert len(runs.search({runs.TAG_KEY: made.key})) == 1


# --- metrics over a kill -----------------------------------------------------------------------------------------


def test_values_that_a_killed_attempt_sent_are_not_sent_again(home: Path) -> None:
    client = MlflowClient()
    run_id = client.create_run(runs.experiment_id()).info.run_id
    client.log_metric(run_id, "loss", 0.5, timestamp=1, step=1)
    client.log_metric(run_id, "seconds", 9.0, timestamp=1, step=1)
    Journal(home).log({"loss": 0.5, "seconds": 8.0}, 1)  # trained again: the same loss at another time
    Journal(home).log({"loss": 0.25, "seconds": 8.0}, 2)
    (home / "result.json").write_text('{"loss": 0.25}')
    assert (home / METRICS_FILE).is_file()
    for _ in range(2):  # the second time after a kill at the end
        send_all(run_id, home)
    assert history(run_id) == [(1, 0.5), (2, 0.25)] and history(run_id, "seconds") == [(1, 9.0), (2, 8.0)]
    assert history(run_id, "final/loss") == [(0, 0.25)]
    assert "rlhf.metrics" not in client.get_run(run_id).data.tags


class Resumed:
    """Five steps with a checkpoint after the second; fails once after the fourth. `drift` is added the second time."""

    def __init__(self, drift: float = 0.0) -> None:
        self.calls, self.drift = 0, drift

    def __call__(self, out: Path, journal: Journal) -> Mapping[str, float]:
        self.calls += 1
        first = 1 if self.calls == 1 else 3
        journal.rewind(first - 1)
        for step in range(first, 6):
            journal.log({"loss": 1.0 / step + self.drift * (self.calls - 1), "seconds": step + self.calls}, step)
            if step == 4 and self.calls == 1:
                raise RuntimeError("stopped")
        return {}


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_steps_that_are_trained_again_count_once(home: Path, drift: float) -> None:
    work = Resumed(drift)
    with pytest.raises(RuntimeError):
        run_stage("sft", work, config=SFTConfig())
    made = run_stage("sft", work, config=SFTConfig())
    truth = [(line["step"], line["values"]["loss"]) for line in Journal(made.path).read()]
    assert truth == [(1, 1.0), (2, 0.5), *((step, 1.0 / step + drift) for step in (3, 4, 5))]
    for name in ("loss", "seconds"):
        assert [step for step, _ in history(made.run_id, name)] == [1, 2, 3, 4, 5]
    sent = [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25), (5, 0.2 + drift)]  # what was told stays told
    assert history(made.run_id) == sent
    told = MlflowClient().get_run(made.run_id).data.tags.get("rlhf.metrics", "")
    assert ("step 3 and later have other values" in told) == bool(drift)


# --- Label Studio ------------------------------------------------------------------------------------------------


@pytest.fixture
def cable(server_url: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[Wire]:
    """Label Studio at the other end of a wire, as the stage finds it."""
    with wire(server_url) as made:
        monkeypatch.setenv("LABEL_STUDIO_URL", made.url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        monkeypatch.setenv("RLHF_PATIENCE_SECONDS", "300")
        monkeypatch.setattr(outages, "POLL_SECONDS", 0.5)
        yield made


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small town whose facts the judge knows."""
    out = tmp_path_factory.mktemp("town")
    build_town(TownConfig(people=14, documents=10, demonstrations=10, prompts=30, heldout_prompts=10), 0, out)
    return out


def responses(town: Path) -> Path:
    """Three answers to each prompt of the town."""
    prompts, _ = read_records(town / "prompts.jsonl", Prompt)
    texts = ("I do not know.", "Mara bakes bread.", "Leave me alone!")
    write_records(
        town / "responses.jsonl",
        [
            ResponseSet(prompt=one, responses=tuple(Response(id=f"{one.id}-{n}", text=t) for n, t in enumerate(texts)))
            for one in prompts[:20]
        ],
    )
    return town


def labeling(title: str) -> LabelingConfig:
    return LabelingConfig(
        title=title,
        rankings=RankingTasks(prompts=6, overlap=2),
        pairwise=PairwiseTasks(prompts=4, overlap=2),
        crew=CrewConfig(annotators=3),
    )


def test_a_collection_is_complete_and_without_copies_though_label_studio_was_away_in_each_part(
    cable: Wire, owner: LabelStudio, town: Path, tmp_path: Path
) -> None:
    cable.losing = [("POST /api/projects/ ", 2.0), ("POST /api/projects/", 2.0), ("POST /api/tasks/", 2.0)]
    figures = collect(labeling("faulty"), tmp_path, Journal(tmp_path), responses=responses(town), town=town)
    assert len(cable.lost) == 3, cable.lost
    assert figures["judgements"] == (6 + 4) * 2
    ours = [project for project in owner.projects() if str(project["title"]).startswith("faulty ")]
    assert len(ours) == 2
    for project in ours:
        rows = list(owner.tasks_with_annotations(project["id"]))
        assert len({row["data"]["uid"] for row in rows}) == len(rows) == (6 if "ranking" in project["title"] else 4)
        who = Counter((row["id"], one["completed_by"]) for row in rows for one in row["annotations"])
        assert set(who.values()) == {1} and len(who) == 2 * len(rows)


@pytest.mark.long
def test_a_pull_waits_for_label_studio_and_in_the_end_says_what_to_do(
    cable: Wire, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collect(labeling("pulled"), tmp_path / "a", Journal(tmp_path / "a"), responses=responses(town), town=town)
    cable.losing = [("GET /api/tasks", 4.0)]
    again = collect(labeling("pulled"), tmp_path / "b", Journal(tmp_path / "b"), responses=responses(town), town=town)
    assert len(cable.lost) == 1 and again["judgements"] == first["judgements"]
    cable.cut()
    monkeypatch.setenv("RLHF_PATIENCE_SECONDS", "1")
    with pytest.raises(ServerUnavailable, match=r"for 0\.0 minutes; what was judged is kept, the same command resumes"):
        collect(labeling("pulled"), tmp_path / "c", Journal(tmp_path / "c"), responses=responses(town), town=town)


# --- Prefect -----------------------------------------------------------------------------------------------------

FLOW = """
import sys, time
from pathlib import Path
from prefect import flow, task
from flows.failures import friendly_errors

@task
def first():
    Path("first").touch()
    while not Path("go on").exists():
        time.sleep(0.1)

@task
def second():
    Path("second").touch()

@flow(name="away")
def away():
    first()
    second()

with friendly_errors():
    away()
"""


@pytest.mark.long
def test_a_flow_outlives_prefects_server(tmp_path: Path) -> None:
    server = Server("prefect", tmp_path)
    server.start()
    told = {**os.environ, **outages.retries(), "PREFECT_API_URL": f"{server.url}/api", "PREFECT_HOME": str(tmp_path)}
    told |= {"PREFECT_API_AUTH_STRING": NOBODY.prefect_auth}
    told |= {"PYTHONPATH": str(Path(__file__).parents[3])}
    try:
        with subprocess.Popen([sys.executable, "-c", FLOW], env=told, cwd=tmp_path) as process:
            until((tmp_path / "first").exists)
            server.kill()
            (tmp_path / "go on").touch()
            until((tmp_path / "second").exists)
            server.start()
            assert process.wait(600) == 0
        assert states(server) == ["Completed"]
    finally:
        server.kill()


def states(server: Server) -> list[str]:
    """The states of flow runs. Those of tasks travel as events, which Prefect's client may lose when it ends soon."""
    with SyncPrefectClient(f"{server.url}/api", auth_string=NOBODY.prefect_auth) as client:
        return [str(run.state_name) for run in client.read_flow_runs()]


def test_an_error_of_the_program_is_not_taken_for_an_outage() -> None:
    with pytest.raises(ZeroDivisionError), friendly_errors():
        _ = 1 / 0
    with pytest.raises(RLHFError, match=r"Prefect .* did not answer.*the same command resumes"), friendly_errors():
        httpx.get(f"http://127.0.0.1:{free_port()}")
