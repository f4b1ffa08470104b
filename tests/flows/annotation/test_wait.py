"""Waiting and dying runs, with their own Prefect and MLflow servers and a real worker."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import mlflow
import psutil
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Crashed, Failed
from typer.testing import CliRunner

from alignment.artifacts import PRIVATE, write_json, write_text
from alignment.errors import DataError
from alignment.records import write_records
from flows import flow_runs
from flows.annotation.accounts import remember
from flows.annotation.wait import OPENED, measure_progress, opened_at, resumed_by_hand, wait_for_people
from flows.annotation.waiting import read_waiting
from flows.cli.main import app
from flows.deployments import watcher as watch
from flows.locks import try_lock
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import Recipe, load_recipe
from flows.stack import processes, stack
from flows.stack.services import Credentials, Name
from flows.stack.stack import Server
from flows.tracking import runs
from labeling.config import LabelingConfig, PairwiseTasks, RankingTasks
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account
from labeling.simulation.crew import pairwise_result, ranking_result, responses_of
from labeling.store.store import Store
from tests.conftest import TINY
from tests.labeling.helpers import REPOSITORY, TOKEN, free_port, open_sets, response_set

pytestmark = pytest.mark.server
OURS: tuple[Name, ...] = ("prefect", "mlflow")
LIMIT_SECONDS = 300.0
SECOND_REPORT = "flow_runs.worker - Check whether"  # what a worker logs last of a killed process


def until(true: Callable[[], Any], what: str) -> Any:
    """Poll until something is so, and return it."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {LIMIT_SECONDS:.0f} s: {what}"
        time.sleep(0.2)
    return found


# --- servers and a worker that can be killed ---------------------------------------------------------------------


class Place:
    """A home with a Prefect and an MLflow server, a worker, and deployments of the pipeline."""

    def __init__(self, home: Path, label_studio: str) -> None:
        self.home = home
        self.credentials = Credentials(
            label_studio_email="owner@rlhf.local",
            label_studio_password="password-of-the-owner",
            label_studio_token=TOKEN,
            label_studio_secret_key="none",
            prefect_auth="rlhf:password-of-prefect",
        )
        write_text(home / "credentials.json", self.credentials.model_dump_json(), PRIVATE)
        servers: dict[Name, Server] = {name: Server(port=free_port()) for name in OURS}
        port = int(label_studio.rpartition(":")[2])
        (pid,) = {
            one.pid
            for one in psutil.net_connections()
            if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN and one.pid
        }
        running = processes.Process(pid=pid, started_at=psutil.Process(pid).create_time(), mark="the tests'")
        servers["label-studio"] = Server(port=port, process=running)
        stack.write_state(home, stack.State(servers=servers))
        self.worker: processes.Process | None = None

    def up(self) -> None:
        """Start the servers, on the ports they had."""
        state = stack.read_state(self.home)
        for name in OURS:
            state = stack._start(name, self.home, state, self.credentials, [])
        for name in OURS:
            stack._wait_for(name, self.home, state, self.credentials, Event())

    def kill(self) -> None:
        """The power fails: worker, flows and servers are gone at once."""
        self.kill_worker()
        servers = stack.read_state(self.home).servers
        for process in (servers[name].process for name in OURS):
            if process is not None:
                kill_all(processes.members(process))

    def environment(self) -> dict[str, str]:
        told = stack.read_state(self.home).site(self.home, self.credentials).client_environment()
        return told | {"OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(REPOSITORY)}

    def ensure_worker(self) -> None:
        """A worker of the pool `train`, as a deployment's runs need one."""
        if self.worker is not None and processes.is_alive(self.worker):
            return
        command = (sys.executable, "-m", "prefect", "worker", "start", "--pool", "train", "--type", "process")
        self.worker = processes.launch(
            command,
            environment={**os.environ, **self.environment()},
            directory=self.home,
            log=self.home / "logs" / "worker.log",
        )

    def flow_processes(self) -> list[psutil.Process]:
        """The processes in which this worker's flows run."""
        if self.worker is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.worker.pid).children(recursive=True)
        return []

    def kill_worker(self) -> None:
        """The worker and what it started, with SIGKILL."""
        if self.worker is not None:
            kill_all([*processes.members(self.worker), *self.flow_processes()])


def kill_all(found: list[psutil.Process]) -> None:
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=LIMIT_SECONDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, server_url: str) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("stack")
    (home / "mlflow").mkdir()
    (home / "mlflow" / "mlflow.db").write_bytes(empty_store.read_bytes())
    place = Place(home, server_url)
    try:
        place.up()
        with pytest.MonkeyPatch.context() as patch:
            told = place.environment()
            for name, value in told.items():
                patch.setenv(name, value)
            mlflow.set_tracking_uri(told["MLFLOW_TRACKING_URI"])
            mlflow.set_registry_uri(told["MLFLOW_REGISTRY_URI"])
            auth = told["PREFECT_API_AUTH_STRING"]
            with temporary_settings({PREFECT_API_URL: told["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: auth}):
                yield place
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    finally:
        place.kill()


@pytest.fixture
def prefect(place: Place) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def deploy(prefect: SyncPrefectClient, flow: str, entrypoint: str) -> UUID:
    """A deployment in the pool `train`, whose job asks for heartbeats."""
    if not prefect.read_work_pools():
        prefect.create_work_pool(WorkPoolCreate(name="train", type="process"))
    return prefect.create_deployment(
        prefect.create_flow_from_name(flow),
        flow,
        entrypoint=entrypoint,
        work_pool_name="train",
        job_variables={"env": {watch.HEARTBEATS: "30"}},
        enforce_parameter_schema=False,
    )


def state_of(prefect: SyncPrefectClient, run: FlowRun) -> str:
    return str(prefect.read_flow_run(run.id).state_name)


def becomes(prefect: SyncPrefectClient, run: FlowRun, *names: str) -> None:
    """Wait for a state; one that is final and another is an error with Prefect's message."""

    def there() -> bool:
        now = prefect.read_flow_run(run.id)
        assert now.state is not None
        assert now.state_name in names or not now.state.is_final(), f"{now.state_name}: {now.state.message}"
        return now.state_name in names

    until(there, f"{run.name} {'/'.join(names)}")


def looked_after(place: Place, **told: Any) -> list[str]:
    """The watcher's look, which does not wait for reports to settle."""
    return watch.check_runs(**{"settled": timedelta(0), **told})


# --- people ------------------------------------------------------------------------------------------------------


def judge(owner: LabelStudio, title: str, at_most: int | None = None) -> int:
    """Somebody who likes short answers judges the tasks of projects of a title; returns how many were judged."""
    account = ensure_account(owner, "paula@rlhf.local", "password-of-paula", "Paula")
    remember(owner, [account.id])  # who only signed up does not count
    ours = [project["id"] for project in owner.projects() if project["title"].startswith(title)]
    rows = [row for number in ours for row in owner.tasks_with_annotations(number)]
    left = [row for row in rows if not row["annotations"]][:at_most]
    with LabelStudio(owner.url, account.token.get_secret_value()) as client:
        for row in left:
            shown = responses_of(row["data"])
            if "responses" in row["data"]:
                result = ranking_result([one for one, _ in sorted(shown, key=lambda pair: len(pair[1]))])
            else:
                result = pairwise_result(9.0 if len(shown[0][1]) < len(shown[1][1]) else -9.0, [(3, 3, 3)] * 2)
            client.annotate(row["id"], result, 5.0)
    return len(left)


def tables(prefect: SyncPrefectClient, run: FlowRun) -> list[str]:
    """What is told on a run's page about its waiting, the oldest first."""
    found = prefect.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["waiting-for-people"])),
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
    )
    return [str(one.data) for one in sorted(found, key=lambda one: one.created or datetime.min.replace(tzinfo=UTC))]


@pytest.mark.long
def test_a_run_is_suspended_outlives_everything_and_is_resumed_when_enough_is_judged(
    place: Place, prefect: SyncPrefectClient, owner: LabelStudio
) -> None:
    told = ["annotators=people", "title=weekend", "minimum_share=0.5", "rankings.overlap=1", "pairwise.overlap=1"]
    less = ["pretrain.epochs=1", "sft.epochs=1", "reward.epochs=1", "ppo.steps=1", "evaluation.curve_prompts=2"]
    recipe = load_recipe(str(TINY), [*less, *(f"labeling.{option}" for option in told)])
    deployment = deploy(prefect, "rlhf", "flows.pipeline.flow.rlhf")
    run = prefect.create_flow_run_from_deployment(deployment, parameters={"recipe": recipe.model_dump(mode="json")})
    place.ensure_worker()
    becomes(prefect, run, "Suspended")
    until(lambda: not place.flow_processes(), "no process of the run")
    (parent,) = runs.search({runs.TAG_FLOW_RUN: str(run.id)})
    (begun,) = runs.search({runs.TAG_STAGE: "labeling"})
    assert (parent.info.status, begun.info.status) == ("SCHEDULED", "SCHEDULED")
    (shown,) = tables(prefect, run)
    (project, *_) = [one for one in owner.projects() if one["title"].startswith("weekend")]
    assert "0 of 16 judged" in shown and f"{owner.url}/projects/{project['id']}" in shown
    assert looked_after(place) == [] and state_of(prefect, run) == "Suspended"

    place.kill()
    status = CliRunner().invoke(app, ["--home", str(place.home), "status"])
    assert status.exit_code == 1 and run.name in status.stdout and "0 of 16" in status.stdout
    place.up()
    assert judge(owner, "weekend", at_most=4) == 4
    assert looked_after(place) == []
    assert "4 of 16 judged" in tables(prefect, run)[0]  # the same table, brought up to date
    status = CliRunner().invoke(app, ["--home", str(place.home), "status"], env={"COLUMNS": "400"})
    assert "4 of 16 judged" in status.stdout and f"`rlhf resume {run.name}`" in status.stdout

    judge(owner, "weekend")
    assert looked_after(place) == [f"{run.name} is resumed: 16 of 16 are judged"]
    place.ensure_worker()
    becomes(prefect, run, "Completed")
    (parent,) = runs.search({runs.TAG_FLOW_RUN: str(run.id)})
    assert parent.info.status == "FINISHED" and parent.data.metrics["gold_policy_score"] > 0
    finished = runs.search({"mlflow.parentRunId": parent.info.run_id}, status="FINISHED")
    assert sorted(one.data.tags[runs.TAG_STAGE] for one in finished) == sorted(steps(recipe))
    assert begun.info.run_id in {one.info.run_id for one in finished}
    assert looked_after(place) == [] and not read_waiting()


# --- two runs on one project, and a person who does not want to wait ---------------------------------------------


def judging(home: Path, title: str, **options: Any) -> dict[str, Any]:
    """A recipe whose labelling needs no other stage: its responses lie in a file."""
    write_records(home / title / "responses.jsonl", [response_set(number) for number in range(4)])
    town = {"people": 14, "documents": 10, "demonstrations": 10, "prompts": 10, "heldout_prompts": 10}
    told = {
        "annotators": "people",
        "title": title,
        "responses": [str(home / title)],
        "minimum_share": 1.0,
        "rankings": {"prompts": 2, "overlap": 1},
        "pairwise": {"prompts": 2, "overlap": 1},
    }
    return {"name": title, "town": town, "labeling": told | options}


@pytest.mark.long
def test_two_runs_wait_on_one_project_and_one_goes_on_by_hand(
    place: Place, prefect: SyncPrefectClient, owner: LabelStudio
) -> None:
    deployment = deploy(prefect, "rlhf-stage", "flows.pipeline.flow.run_stage_alone")
    told = {"recipe": judging(place.home, "shared"), "stage": "labeling"}
    one, other = (prefect.create_flow_run_from_deployment(deployment, parameters=told) for _ in range(2))
    place.ensure_worker()
    becomes(prefect, one, "Suspended")
    becomes(prefect, other, "Suspended")
    assert len([project for project in owner.projects() if project["title"].startswith("shared")]) == 2  # two kinds
    refused = CliRunner().invoke(app, ["--home", str(place.home), "resume", "nobody"])
    assert "there is no run 'nobody'" in str(refused.exception)
    CliRunner().invoke(app, ["--home", str(place.home), "resume", one.name], catch_exceptions=False)
    becomes(prefect, one, "Resuming", "Pending", "Running")
    becomes(prefect, one, "Suspended")  # with nothing judged there is nothing to go on with

    judge(owner, "shared", at_most=3)
    assert looked_after(place) == []
    CliRunner().invoke(app, ["--home", str(place.home), "resume", str(one.id)], catch_exceptions=False)
    becomes(prefect, one, "Completed")
    assert state_of(prefect, other) == "Suspended"
    assert looked_after(place) == [f"{other.name} is resumed: another run has finished this labelling"]
    becomes(prefect, other, "Completed")
    key = keys(steps(Recipe.model_validate(told["recipe"])))["labeling"]
    (finished,) = runs.search({runs.TAG_KEY: key})
    assert (finished.info.status, finished.data.metrics["judgements"]) == ("FINISHED", 3.0)


# --- dead runs ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_dead_run_is_started_again_a_few_times_and_no_other(place: Place, prefect: SyncPrefectClient) -> None:
    deployment = deploy(prefect, "asleep", "tests.flows.asleep.asleep")
    run = prefect.create_flow_run_from_deployment(deployment)
    place.ensure_worker()
    becomes(prefect, run, "Running")
    kill_all(place.flow_processes())
    becomes(prefect, run, "Crashed")  # its worker lives and sees it
    assert looked_after(place, settled=timedelta(hours=1)) == []
    until(lambda: (place.home / "logs" / "worker.log").read_text().count(SECOND_REPORT), "its second report")
    (said,) = looked_after(place)
    assert said.startswith(f"{run.name} is restarted (1 of 3): Process exited with status code: -9")
    becomes(prefect, run, "Pending", "Submitting", "Running")
    becomes(prefect, run, "Running")
    until(lambda: flow_runs.last_heartbeat(prefect, run), "a heartbeat")
    assert looked_after(place) == []  # it lives
    place.kill_worker()
    assert looked_after(place) == [] and state_of(prefect, run) == "Running"  # who says that it is dead?
    now = {"silence": timedelta(0), "doubt": timedelta(0)}
    assert looked_after(place, silence=timedelta(0)) == []  # silent, but only just noticed
    found, again = looked_after(place, **now)
    assert found.startswith(f"{run.name} is dead: no heartbeat since")
    assert again.startswith(f"{run.name} is restarted (2 of 3): no heartbeat")
    assert looked_after(place, **now) == []

    flow_runs.set_state(prefect, run, Crashed(message="a third time"))
    assert looked_after(place) == [f"{run.name} is restarted (3 of 3): a third time"]
    flow_runs.set_state(prefect, run, Crashed(message="a fourth time"))
    (given_up,) = looked_after(place)
    assert f"{run.name} stays crashed: it was restarted 3 times" in given_up and "a fourth time" in given_up
    assert looked_after(place) == []
    message = prefect.read_flow_run(run.id).state.message  # type: ignore[union-attr]
    assert message is not None and f"`rlhf retry {run.name}` restarts it" in message
    told = CliRunner().invoke(app, ["--home", str(place.home), "status"], env={"COLUMNS": "400"}).stdout
    assert "Crashed" in told and f"`rlhf retry {run.name}`" in told

    CliRunner().invoke(app, ["--home", str(place.home), "retry", run.name], catch_exceptions=False)
    flow_runs.set_state(prefect, run, Crashed(message="after a person"))
    assert looked_after(place) == [f"{run.name} is restarted (1 of 3): after a person"]
    for state in (Cancelled(), Failed(message="its own error")):
        flow_runs.set_state(prefect, run, state)
        assert looked_after(place, **now) == []


@pytest.mark.long
def test_schedules_fire(place: Place, prefect: SyncPrefectClient) -> None:
    deployment = deploy(prefect, "asleep", "tests.flows.asleep.asleep")
    prefect.create_deployment_schedules(deployment, [(IntervalSchedule(interval=timedelta(hours=9)), True)])
    ours = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    scheduled = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"])))
    until(lambda: prefect.read_flow_runs(flow_run_filter=scheduled, deployment_filter=ours), "a scheduled run")
    prefect.delete_deployment(deployment)


@pytest.mark.long
def test_one_watcher_at_a_time(place: Place) -> None:
    with try_lock(place.home, watch.LOCK) as free:
        assert free and looked_after(place) == []


# --- when it is enough -------------------------------------------------------------------------------------------


def config(**told: Any) -> LabelingConfig:
    """Two rankings and a pair, each judged by two."""
    return LabelingConfig(
        annotators="people",
        title="enough",
        rankings=RankingTasks(prompts=2),
        pairwise=PairwiseTasks(prompts=1),
        poll_seconds=0.1,
        minimum_share=1.0,
        **told,
    )


def test_quota_agreement_and_deadline(owner: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    store = Store(tmp_path / "annotations.db")
    place = tmp_path / "labeling-1.partial"
    collection = open_sets(owner, config(), [response_set(number) for number in range(3)], place)

    def found(**told: Any) -> Any:
        return measure_progress(owner, collection, config(**told), store, place)

    begun = opened_at(place)
    assert found().reason == "" and found().deadline == begun + timedelta(hours=72)
    for name in ("anna", "bert"):  # of opposite minds
        account = ensure_account(owner, f"{name}@rlhf.local", f"password-of-{name}", name)
        with LabelStudio(owner.url, account.token.get_secret_value()) as client:
            for number in collection.batches[0].task_ids.values():
                row = next(row for row in owner.tasks(collection.batches[0].project.id, "data") if row["id"] == number)
                shown = sorted(one for one, _ in responses_of(row["data"]))
                client.annotate(number, ranking_result(shown if name == "anna" else shown[::-1]), 5.0)
        assert found().done == (0 if name == "anna" else 2)  # who only signed up does not count
        remember(owner, [account.id])
    assert (found().done, found().needed, found().reason) == (4, 6, "")
    half = config().model_copy(update={"minimum_share": 0.5})
    assert measure_progress(owner, collection, half, store, place).reason == "4 of 6 are judged"
    agreed = measure_progress(owner, collection, half.model_copy(update={"minimum_agreement": 0.6}), store, place)
    assert (agreed.agreement, agreed.reason) == (0.0, "")
    assert "agreement 0.00, 0.60 is required" in agreed.describe(config(minimum_agreement=0.6))

    write_json(place / OPENED, {"opened_at": (datetime.now(UTC) - timedelta(hours=73)).isoformat()})
    assert found().reason == "the deadline of 72 hours is reached, with 4 of 6 judged"
    assert found(deadline_hours=74).reason == ""
    wait_for_people(owner, collection, config(), store, place)  # returns at once
    write_json(place / OPENED, {"opened_at": (datetime.now(UTC) - timedelta(hours=1)).isoformat()})
    assert found().reason == ""


def test_nothing_judged_at_the_deadline_is_an_error(owner: LabelStudio, tmp_path: Path) -> None:
    told = config(deadline_hours=1e-6).model_copy(update={"title": "nobody"})
    collection = open_sets(owner, told, [response_set(number) for number in range(3)], tmp_path / "place")
    with pytest.raises(DataError, match=r"nothing was judged by .*raise `labeling.deadline_hours`"):
        wait_for_people(owner, collection, told, Store(tmp_path / "annotations.db"), tmp_path / "place")


def test_agreement_needs_two_and_unset_it_is_in_no_key() -> None:
    with pytest.raises(ValueError, match="minimum_agreement needs an overlap of at least 2"):
        LabelingConfig(minimum_agreement=0.7, rankings=RankingTasks(overlap=1), pairwise=PairwiseTasks(overlap=1))
    assert "minimum_agreement" not in LabelingConfig().model_dump()
    assert LabelingConfig(minimum_agreement=0.7).model_dump()["minimum_agreement"] == 0.7


def test_who_resumed_a_run_is_read_from_its_history() -> None:
    def state(minute: int, name: str, kind: StateType, message: str = "", key: str | None = None) -> State:
        made = State(type=kind, name=name, message=message, timestamp=datetime(2026, 1, 1, 0, minute, tzinfo=UTC))
        made.state_details.pause_key = key
        return made

    waited = [
        state(1, "Suspended", StateType.PAUSED, key="artifacts/labeling-1.partial#a"),
        state(2, "Resuming", StateType.SCHEDULED, "watch: 4 of 4 are judged"),
    ]
    assert not resumed_by_hand(waited, "artifacts/labeling-1.partial")
    asked = [
        *waited,
        state(3, "Suspended", StateType.PAUSED, key="artifacts/labeling-1.partial#b"),
        state(4, "Resuming", StateType.SCHEDULED),
        state(5, "Crashed", StateType.CRASHED),
    ]
    assert resumed_by_hand(asked[::-1], "artifacts/labeling-1.partial")
    assert not resumed_by_hand(asked, "labeling-1.partial/adjudication")


# --- in a terminal -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_ctrl_c_says_which_command_goes_on(place: Place, owner: LabelStudio, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(judging(place.home, "terminal")), encoding="utf-8")
    told = ["--home", str(place.home), "run", str(recipe), "--stage", "labeling", "--set", "labeling.poll_seconds=0.2"]
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # in the background a shell has it ignored
    command = [sys.executable, "-c", f"import signal; {heard}; from flows.cli.main import main; main()", *told]
    with (tmp_path / "out").open("w+") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path) as run:
        until(lambda: "the same command resumes" in (tmp_path / "out").read_text() or run.poll() is not None, "waiting")
        run.send_signal(signal.SIGINT)
        assert run.wait(LIMIT_SECONDS) == 130
    assert f"this command resumes it: {shlex.join(['rlhf', *told])}" in (tmp_path / "out").read_text()
    assert "Traceback" not in (tmp_path / "out").read_text()
    judge(owner, "terminal")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=LIMIT_SECONDS)
    assert done.returncode == 0 and "labeling-" in done.stdout.splitlines()[-1], done.stderr
