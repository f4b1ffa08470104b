"""`rlhf doctor`: each check on a healthy and on a broken subject, with its advice."""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from typer.testing import CliRunner

from flows.cli.main import app
from flows.deployments import overview
from flows.locks import open_lock, take
from flows.operations import doctor
from flows.stack import credentials, postgres, processes, state
from flows.stack.processes import Process
from flows.stack.stack import Server, State
from labeling.store.store import Store
from tests.labeling.helpers import REPOSITORY


def test_what_is_not_there_yet_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "new"))
    found = doctor.run_checks()
    assert {one.what for one in found} >= {"Python", "packages", "disk", "memory", "Prefect", "MLflow", "Label Studio"}
    of_the_machine = {"disk", "memory", "Label Studio's program"}
    assert all(one.ok and not one.fix for one in found if one.what not in of_the_machine)
    assert not (tmp_path / "new").exists()  # it changes nothing


def test_packages_that_are_missing_or_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["pytest>=1", "pytest<1", "no-such-thing", 'neither-this; extra == "dev"', 'nor-this; sys_platform == "x"']
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    found = doctor.packages()
    assert not found.ok and found.fix == "make setup"
    assert found.seen == f"pytest is {pytest.__version__}, not <1; no-such-thing is missing"
    monkeypatch.undo()
    assert doctor.packages("not-installed-anywhere").seen == "not-installed-anywhere is not installed"


def test_a_production_stack_needs_the_programs_of_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(doctor.postgresql(tmp_path))
    state.write(tmp_path, State(profile="production"))
    monkeypatch.setattr(postgres, "_candidate_directories", list)
    (found,) = doctor.postgresql(tmp_path)
    assert not found.ok and "PostgreSQL" in found.fix and postgres.INSTALL in found.fix


@pytest.mark.parametrize(("version", "ok"), [("1.23.2", True), ("1.23", True), ("1.230.1", False), ("2.0.0", False)])
def test_label_studio_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, ok: bool
) -> None:
    program = tmp_path / "bin" / "label-studio"
    monkeypatch.setenv("RLHF_LABEL_STUDIO", str(program))
    assert "make setup" in doctor.label_studio().fix
    program.parent.mkdir()
    program.touch()
    assert doctor.label_studio().seen == "unknown version"
    (tmp_path / "lib" / "python3.11" / "site-packages" / f"label_studio-{version}.dist-info").mkdir(parents=True)
    found = doctor.label_studio()
    assert (found.ok, found.seen) == (ok, version) and ok != ("install version 1.23" in found.fix)


def test_a_full_disk_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * doctor.GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=doctor.GIB))
    full, little = doctor.disk(tmp_path / "a" / "b"), doctor.memory()
    assert not full.ok and full.seen == f"2 GiB free at {tmp_path}" and "RLHF_HOME" in full.fix
    assert not little.ok and little.seen == "1.0 GiB available"


def test_credentials_that_others_can_read(tmp_path: Path) -> None:
    for name, mode in (("credentials.json", 0o600), ("annotators.json", 0o640)):
        (tmp_path / name).write_text("{}")
        (tmp_path / name).chmod(mode)
    good, bad = doctor.secrets(tmp_path)
    assert good.ok and not bad.ok and bad.fix == f"chmod 600 {tmp_path / 'annotators.json'}"


def test_a_port_that_is_named_and_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        monkeypatch.setenv("RLHF_MLFLOW_PORT", str(busy.getsockname()[1]))
        found = {one.what: one for one in doctor.servers(tmp_path)}
    assert found["Prefect"].ok and not found["MLflow"].ok and "unset RLHF_MLFLOW_PORT" in found["MLflow"].fix


def test_files_of_the_stack_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    (found,) = doctor.servers(tmp_path)
    assert not found.ok and "stop the servers by hand" in found.fix


class Late(http.server.BaseHTTPRequestHandler):
    """Answers as an MLflow server would whose clock is five minutes behind."""

    def do_GET(self) -> None:
        body = b"3.17.2"
        self.send_response_only(200)
        self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(minutes=5)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def late() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_server_with_another_time_of_day_and_one_that_does_not_answer(
    tmp_path: Path, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Process(pid=os.getpid(), started_at=psutil.Process().create_time(), mark="here")
    monkeypatch.setattr(processes, "is_alive", lambda process: True)
    state = State(servers={"mlflow": Server(port=late, process=here), "prefect": Server(port=1, process=here)})
    (tmp_path / "stack.json").write_text(state.model_dump_json())
    credentials.ensure(tmp_path)
    found = {one.what: one for one in doctor.servers(tmp_path)}
    assert re.fullmatch(r"its clock is -3\d\d s from ours", found["MLflow"].seen)
    assert "synchronise the clocks" in found["MLflow"].fix
    assert not found["Prefect"].ok and "`rlhf down` and `rlhf up`" in found["Prefect"].fix


def test_the_command_shows_it_and_fails_when_something_is_not_well(tmp_path: Path) -> None:
    told = {"RLHF_HOME": str(tmp_path), "COLUMNS": "400"}
    (tmp_path / "credentials.json").write_text(json.dumps({}))
    (tmp_path / "credentials.json").chmod(0o644)
    done = CliRunner().invoke(app, ["doctor"], env=told)
    assert done.exit_code == 1 and f"chmod 600 {tmp_path}/credentials.json" in done.output


@pytest.mark.parametrize("value", ["http", "0", "70000", "", "-1", "80.5"])
def test_a_port_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RLHF_PREFECT_PORT", "24200")
    monkeypatch.setenv("RLHF_MLFLOW_PORT", value)
    (found,) = doctor.ports()
    assert not found.ok and "set RLHF_MLFLOW_PORT to a number" in found.fix


def test_a_damaged_database_and_one_that_is_well(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    Store(tmp_path / "annotations.db").close()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"no database at all" * 100)
    (found,) = doctor.databases(tmp_path)
    assert (found.what, found.ok) == ("mlflow/mlflow.db", False) and "not a database" in found.seen
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"")
    (found,) = doctor.databases(tmp_path)
    assert (found.what, found.ok) == ("mlflow/mlflow.db", False) and "is empty" in found.seen


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user needs root")
def test_the_stack_of_another_account_is_not_to_be_stopped_by_hand() -> None:
    home = Path("/tmp/rlhf-doctor-of-another")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o755)
    try:
        state.write(home, State())
        code = f"from pathlib import Path; from flows.operations import doctor; print(*doctor.servers(Path('{home}')))"
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        told = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run([*user, sys.executable, "-c", code], env=told, cwd="/", capture_output=True, text=True)
        assert "(Permission denied): change its owner or mode" in run.stdout, run.stderr
        assert "by hand" not in run.stdout
    finally:
        shutil.rmtree(home)


def test_half_made_outputs_that_nobody_goes_on_with(tmp_path: Path) -> None:
    for name in ("sft-1.partial", "ppo-2.partial"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
    os.utime(tmp_path / "artifacts" / "sft-1.partial", (0, 0))
    os.utime(tmp_path / "artifacts" / "ppo-2.partial", (0, 0))
    with open_lock(tmp_path, "ppo-2") as running:
        assert take(running)
        (found,) = doctor.leftovers(tmp_path)
    assert found.seen.startswith("1 unfinished") and "sft-1.partial" in found.seen and "rlhf gc" in found.fix


def test_pools_without_a_worker(prefect_server: str) -> None:
    with get_client(sync_client=True) as prefect:
        name = f"doctor-{uuid4().hex[:6]}"
        prefect.create_work_pool(WorkPoolCreate(name=name, type="process"))
        found = {one.what: one for one in overview.check_pools()}[f"pool {name}"]
        prefect.delete_work_pool(name)
    assert not found.ok and found.fix == f"start a worker: `python -m flows.deployments.worker --pool {name}`"
