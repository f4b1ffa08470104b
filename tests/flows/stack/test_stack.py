"""The local stack: checks without servers, and one full cycle of up, repair, use and down."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest

from flows.stack import commands, credentials, processes, services, stack
from flows.stack.processes import Process, StackError
from flows.stack.services import HOST, NAMES, TITLES, Credentials, Site
from flows.stack.stack import Server, State
from tests.conftest import TINY
from tests.flows.local import hostile_environment
from tests.labeling.helpers import free_port

CODE = """
import json, sys
from pathlib import Path
from prefect import flow, task
from alignment.config.stages import SFTConfig
from flows.tracking import runs
from flows.releases.report import log_release
from flows.tracking.runner import as_state
from tests.flows.tiny import run_stage
from tests.flows.tiny import text_model

@task(persist_result=False)
def sft():
    return as_state(run_stage("sft", text_model, config=SFTConfig(), model="policy", parent=PARENT))

@flow
def twice():
    return [sft(return_state=True), sft(return_state=True)]

with runs.pipeline_run("tiny", recipe=SFTConfig()) as PARENT:
    states = twice()
    log_release(PARENT, {"release": "tiny-1", "seed": 0, "seconds": {"sft": 1.0}, "cached": {"sft": True}})
print(json.dumps([[state.name, state.result().model] for state in states]))
"""


def rlhf(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "RLHF_HOME": str(home), "COLUMNS": "200", **variables}
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=600)


def test_a_stack_that_does_not_run_says_which_command_starts_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="`rlhf up`") as caught:
        stack.connect(tmp_path)
    assert "Label Studio (not running)" in str(caught.value)
    with pytest.raises(StackError, match=r"^MLflow \(not running\) of the stack"):
        stack.connect(tmp_path, ["mlflow"])
    assert stack.down(tmp_path / "nowhere") == []


def test_credentials_are_made_once_and_are_for_the_owner_alone(tmp_path: Path) -> None:
    made = credentials.ensure(tmp_path)
    assert credentials.ensure(tmp_path) == made
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600
    assert len(made.label_studio_token) == 40
    int(made.label_studio_token, 16)
    other = tmp_path / "other"
    other.mkdir()
    assert credentials.ensure(other).label_studio_password != made.label_studio_password


@pytest.mark.parametrize("name", ["stack.json", "credentials.json"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")
    with pytest.raises(StackError, match=name):
        stack.status(tmp_path)


def test_a_named_port_that_is_busy_is_an_error_and_a_default_one_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        notes: list[str] = []
        assert stack._port("mlflow", Server(port=port), [], notes) > port
        assert notes and f"port {port} is busy, so MLflow is on" in notes[0]
        monkeypatch.setenv("RLHF_MLFLOW_PORT", str(port))
        with pytest.raises(StackError, match=rf"port {port} is busy \(RLHF_MLFLOW_PORT\)"):
            stack._port("mlflow", None, [], notes)
    monkeypatch.setenv("RLHF_MLFLOW_PORT", "many")
    with pytest.raises(StackError, match="RLHF_MLFLOW_PORT=many is not a port"):
        stack._port("mlflow", None, [], [])


def test_a_server_that_ends_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mlflow.log").write_text("the reason\n")
    dead = Server(port=free_port(), process=Process(pid=2**22 - 1, started_at=0.0, mark="x"))
    state = State(servers={"mlflow": dead})
    with pytest.raises(StackError, match=r"MLflow ended before it was ready(.|\n)*the reason"):
        stack._wait_for("mlflow", tmp_path, state, credentials.ensure(tmp_path), Event())


@pytest.mark.parametrize("name", ["prefect", "ops-worker"])
def test_backups_configure_nothing(name: services.Name, tmp_path: Path) -> None:
    site = Site(home=tmp_path, credentials=credentials.ensure(tmp_path), addresses={name: "127.0.0.1:1"})
    commands.prepare(name, site)
    (tmp_path / name / "prefect.toml").touch()
    with pytest.raises(StackError, match=r"prefect.toml would configure the server"):
        commands.prepare(name, site)


def test_a_missing_label_studio_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLHF_LABEL_STUDIO", str(tmp_path / "label-studio"))
    with pytest.raises(StackError, match="make setup"):
        services.label_studio_executable()


def test_servers_are_told_not_to_phone_home_and_not_where_others_keep_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.touch()
    monkeypatch.setenv("RLHF_LABEL_STUDIO", str(program))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://somebody")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://somebody")
    accounts = Credentials(
        label_studio_email="a@b.c",
        label_studio_password="long enough",
        label_studio_token="a" * 40,
        label_studio_secret_key="s",
    )
    addresses = {name: f"{HOST}:{free_port()}" for name in NAMES}
    site = Site(home=tmp_path, credentials=accounts, addresses=addresses)
    told = {name: commands.launch_of(name, site).environment for name in NAMES}
    assert told["prefect"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == told["label-studio"]["LABEL_STUDIO_COLLECT_ANALYTICS"]
    assert told["prefect"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert told["mlflow"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in told["prefect"]
    assert "MLFLOW_BACKEND_STORE_URI" not in told["mlflow"]


def test_the_state_survives_a_round_through_its_file(tmp_path: Path) -> None:
    state = State(servers={"mlflow": Server(port=5, process=Process(pid=1, started_at=2.5, mark="m"))})
    stack.write_state(tmp_path, state)
    assert stack.read_state(tmp_path) == state


@pytest.mark.server
@pytest.mark.slow
def test_up_mend_use_and_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        services.label_studio_executable()
    except StackError as error:
        pytest.skip(str(error))
    for name in NAMES:
        monkeypatch.setenv(services.port_variable(name), str(free_port()))
    home = tmp_path / "home"
    try:
        running = stack.up(home)
        _log_in(running)
        _second_up_finds_what_runs(home)
        _half_dead_is_mended(home)
        _flows_and_models(home, running)
        _right_answers_whatever_the_environment_says(home)
        _backed_up_while_it_runs_and_restored(home, tmp_path)
        assert rlhf(home, "up", "--workers").returncode == 0
        assert rlhf(home, "status").stdout.count("works") == 5
    finally:
        before = stack.read_state(home)
        stopped = stack.down(home)
    assert stopped == ["Prefect", "MLflow", "Label Studio", TITLES["train-worker"], TITLES["ops-worker"]]
    assert rlhf(home, "status").returncode == 1
    told = rlhf(home, "report")
    assert (told.returncode, "`rlhf up`" in told.stderr, "Traceback" in told.stderr) == (1, True, False)
    for server in before.servers.values():
        assert server.process is not None
        assert not psutil.pid_exists(server.process.pid)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url, trust_env=False)


def _log_in(running: stack.Stack) -> None:
    """The generated account is a real one."""
    token = {"Authorization": f"Token {running.credentials.label_studio_token}"}
    who = httpx.get(f"{running.urls['label-studio']}/api/current-user/whoami", headers=token, trust_env=False).json()
    assert who["email"] == running.credentials.label_studio_email


def _second_up_finds_what_runs(home: Path) -> None:
    before = stack.read_state(home)
    stack.up(home)
    assert stack.read_state(home) == before


def _half_dead_is_mended(home: Path) -> None:
    before = stack.read_state(home)
    killed = before.servers["mlflow"].process
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)  # its worker lives on and holds the port
    deadline = time.monotonic() + 10
    while processes.is_alive(killed) and time.monotonic() < deadline:
        time.sleep(0.05)
    stack.up(home)
    after = stack.read_state(home)
    assert after.servers["mlflow"].process != killed
    assert after.servers["mlflow"].port == before.servers["mlflow"].port
    assert after.servers["prefect"] == before.servers["prefect"]


def _flows_and_models(home: Path, running: stack.Stack) -> None:
    """A stage in a Prefect task, twice."""
    told = {**os.environ, **running.environment(), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", CODE], env=told, capture_output=True, text=True, timeout=600, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads(done.stdout.strip().splitlines()[-1])
    assert states == [["Completed", "models:/policy/1"], ["Cached", "models:/policy/1"]]


def _right_answers_whatever_the_environment_says(home: Path) -> None:
    """The command line reads what the stage left, with proxies that lead nowhere and the addresses of other servers."""
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen(128)
        away = hostile_environment(f"http://{HOST}:{silent.getsockname()[1]}")
        commands = [("status",), ("report", "--json"), ("run", str(TINY), "--plan"), ("label", "status")]
        with ThreadPoolExecutor() as pool:
            status, report, plan, label = pool.map(lambda command: rlhf(home, *command, **away), commands)
    assert (status.returncode, status.stdout.count("works"), "(none)" in status.stdout) == (0, 3, True), status.stderr
    assert json.loads(report.stdout)["release"] == "tiny-1"
    assert plan.returncode == 0 and "to run" in plan.stdout and "unknown" not in plan.stdout, plan.stderr
    assert label.returncode == 0 and "as of the last sync" not in label.stderr, label.stderr
    for done in (status, report, plan, label):
        assert "MLFLOW_TRACKING_URI (127.0.0.1:" in done.stderr and "hunter22" not in done.stderr


def _backed_up_while_it_runs_and_restored(home: Path, tmp_path: Path) -> None:
    """The copy has the same models and the same credentials, on ports of its own."""
    assert rlhf(home, "backup", str(tmp_path / "kept")).returncode == 0
    new = tmp_path / "restored"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(services.port_variable("mlflow"), str(free_port()))
        try:
            assert rlhf(new, "restore", str(tmp_path / "kept"), "--key", str(home / "backup.key")).returncode == 0
            assert (new / "credentials.json").read_bytes() == (home / "credentials.json").read_bytes()
            stack._up(new, stack.read_state(new), credentials.ensure(new), [("mlflow",)])
            copied, found = (rlhf(place, "lineage", "policy", "--json").stdout for place in (new, home))
            assert copied == found and "models:/policy/1" in copied
        finally:
            stack.down(new)
