"""A password goes to a server of our own account alone: the ports of servers that ended are taken by others."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import httpx
import pytest

from flows.stack import credentials, listeners, processes, stack
from flows.stack.listeners import NotOurs, check_listener, guard, guard_own_servers, listening_accounts, own_servers
from flows.stack.processes import PortLost
from flows.stack.state import Server, State
from tests.labeling.helpers import free_port

LISTEN = """
import socket, sys
server = socket.socket()
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen()
print("ready", flush=True)
server.accept()[0].recv(1000)
print("something was sent", flush=True)
"""
NOBODY = 65534
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="another account listens: needs root")


@pytest.fixture(autouse=True)
def no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards end with the test."""
    monkeypatch.setattr(listeners, "_own", {})
    monkeypatch.setattr(socket.socket, "connect", socket.socket.connect)


@pytest.fixture
def stranger() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Another account that listens on a port, and says when it receives something."""
    port = free_port()
    command = [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-c", LISTEN, "127.0.0.1"]
    with subprocess.Popen([*command, str(port)], user=NOBODY, cwd="/", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield port, process
        process.kill()


def test_who_listens_on_a_port() -> None:
    me, port = os.geteuid(), free_port()
    assert listening_accounts("127.0.0.1", port) == set()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with closing(socket.socket(family)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            assert listening_accounts("127.0.0.1", port) == set()
            server.listen()
            assert listening_accounts("127.0.0.1", port) == {me}
    with pytest.raises(NotOurs, match=f"nothing listens on 127.0.0.1:{port}"):
        check_listener("127.0.0.1", port, {me})


@ROOT_ONLY
def test_nothing_is_sent_to_another_account(stranger: tuple[int, subprocess.Popen[str]], tmp_path: Path) -> None:
    port, process = stranger
    guard([f"127.0.0.1:{port}"], tmp_path)
    with pytest.raises(httpx.ConnectError, match=f"another account of this machine .uid {NOBODY}. listens on"):
        httpx.get(f"http://127.0.0.1:{port}", auth=("rlhf", "secret"), trust_env=False)
    process.kill()
    assert process.stdout is not None and process.stdout.read() == ""


@ROOT_ONLY
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_worker_sends_no_password_to_another_account(
    stranger: tuple[int, subprocess.Popen[str]], tmp_path: Path, asynchronous: bool
) -> None:
    """With Prefect's own clients, in an environment as a worker has it."""
    port, process = stranger
    url = f"http://127.0.0.1:{port}/api"
    code = f"""
import asyncio
from prefect.client.orchestration import get_client
from flows.stack.listeners import guard_own_servers
guard_own_servers()
async def ask():
    async with get_client() as client:
        await client.read_flows()
try:
    asyncio.run(ask()) if {asynchronous} else get_client(sync_client=True).read_flows()
except Exception as error:
    print(error)
"""
    environment = {**os.environ, **own_servers([f"127.0.0.1:{port}"]), "RLHF_HOME": str(tmp_path)}
    environment |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": "rlhf:secret", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    command = [sys.executable, "-c", code]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert "another account" in asked.stdout or "connection attempts failed" in asked.stdout, (
        asked.stdout + asked.stderr
    )
    process.kill()
    assert process.stdout is not None and process.stdout.read() == ""


def test_our_own_server_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RLHF_OWN_SERVERS", address)
        monkeypatch.setenv("RLHF_HOME", str(tmp_path))
        guard_own_servers()
        with closing(socket.create_connection(server.getsockname())):
            server.accept()[0].close()
    assert own_servers(["prefect:4200", address]) == {"RLHF_OWN_SERVERS": address}
    assert own_servers(["prefect:4200"]) == {}


def test_a_server_whose_port_was_taken_is_not_asked_and_starts_on_another(tmp_path: Path) -> None:
    """As with two homes that start in the same second: ours waits on a port where somebody else listens."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mlflow.log").touch()
    known = credentials.ensure(tmp_path)
    environment = dict(os.environ)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = processes.launch(command, environment=environment, directory=tmp_path, log=tmp_path / "log")
    try:
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            state = State(servers={"mlflow": Server(port=other.getsockname()[1], process=ours)})
            assert not stack._health("mlflow", tmp_path, state, known).ok
            with pytest.raises(PortLost, match="another process has port"):
                stack._wait_for("mlflow", tmp_path, state, known, Event())
            assert stack._wait_for_all(["mlflow"], tmp_path, state, known) == ["mlflow"]
            other.settimeout(0.1)
            with pytest.raises(TimeoutError):
                other.accept()
    finally:
        processes.stop(ours, 1.0)
