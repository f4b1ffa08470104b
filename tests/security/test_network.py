"""Servers listen on loopback only unless configured otherwise."""

import json
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.stack import credentials, processes, stack
from flows.stack.commands import launch_of
from flows.stack.processes import StackError
from flows.stack.services import NAMES, Name, Profile, Site, is_loopback
from flows.stack.state import Server, State
from labeling.server import receiver as listen
from labeling.server.process import ServerSettings, command
from tests.labeling.helpers import free_port, settings


@pytest.mark.parametrize("name", NAMES)
def test_every_server_is_started_on_loopback(tmp_path: Path, name: Name) -> None:
    addresses: dict[Name, str] = {one: f"127.0.0.1:{free_port()}" for one in NAMES}
    launch = launch_of(name, Site(home=tmp_path, credentials=credentials.ensure(tmp_path), addresses=addresses))
    words = list(launch.command)
    host = words[words.index("--internal-host" if name == "label-studio" else "--host") + 1]
    assert host == "127.0.0.1" and "0.0.0.0" not in " ".join(words)


def test_servers_without_passwords_are_not_opened_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_BIND_HOST", "0.0.0.0")
    with pytest.raises(StackError, match="--profile production"):
        stack.up(tmp_path)
    assert stack.down(tmp_path) == []
    with pytest.raises(StackError, match="in the clear"):
        stack.up(tmp_path, "production")
    assert not (tmp_path / "credentials.json").exists()
    monkeypatch.setenv("RLHF_BEHIND_TLS", "1")
    assert stack._requested_state(tmp_path, "production", False).bind == "0.0.0.0"
    with pytest.raises(StackError, match="--profile production"):
        stack.up(tmp_path)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *(("127.0.0.1", True), ("127.3.2.1", True), ("localhost", True), ("::1", True), ("[::1]", True)),
        *(("127.evil.example", False), ("0.0.0.0", False), ("localhost.evil", False), ("10.0.0.1", False)),
    ],
)
def test_loopback_is_an_address_and_no_beginning_of_a_name(host: str, ours: bool) -> None:
    assert is_loopback(host) == ours


def test_a_home_from_before_gets_a_password_of_prefect(tmp_path: Path) -> None:
    known = credentials.ensure(tmp_path)
    old = known.model_dump(exclude_none=True, exclude={"prefect_auth"})
    (tmp_path / "credentials.json").write_text(json.dumps(old))
    before = credentials.read(tmp_path)
    assert before is not None and before.prefect_auth == ""
    upgraded = credentials.ensure(tmp_path)
    assert upgraded.prefect_auth.startswith("rlhf:") and len(upgraded.prefect_auth) >= 24
    assert upgraded.model_dump(exclude={"prefect_auth"}) == before.model_dump(exclude={"prefect_auth"})
    assert credentials.ensure(tmp_path) == credentials.read(tmp_path) == upgraded


EVERYTHING = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


@pytest.mark.parametrize(("status", "stays"), [(200, False), (400, True)])
def test_a_server_from_before_is_stopped_with_its_workers(tmp_path: Path, status: int, stays: bool) -> None:
    """200: a server that answers under any host name."""
    port, asleep = free_port(), [sys.executable, "-c", "import time; time.sleep(600)"]
    commands = {"prefect": [sys.executable, "-c", EVERYTHING, str(port), str(status)], "ops-worker": asleep}
    started = {
        name: processes.launch(command, environment={}, directory=tmp_path, log=tmp_path / "log")
        for name, command in commands.items()
    }
    try:
        while processes.port_is_free("127.0.0.1", port):
            time.sleep(0.05)
        servers = {name: Server(port=port, process=process) for name, process in started.items()}
        stack._stop_unguarded(tmp_path, State.model_validate({"servers": servers}), credentials.ensure(tmp_path))
        assert [processes.is_alive(process) for process in started.values()] == [stays, stays]
    finally:
        for process in started.values():
            processes.stop(process)


@pytest.mark.parametrize("profile", ["default", "production"])
def test_prefect_and_mlflow_check_host_names_in_every_profile(tmp_path: Path, profile: Profile) -> None:
    addresses: dict[Name, str] = {name: f"127.0.0.1:{free_port()}" for name in ("postgres", *NAMES)}
    known = credentials.ensure(tmp_path, profile)
    site = Site(home=tmp_path, credentials=known, addresses=addresses, profile=profile, allowed_hosts=("m.example",))
    for name in ("prefect", "mlflow"):
        command = list(launch_of(name, site).command)
        allowed = command[command.index("--allowed-hosts") + 1].split(",")
        assert allowed == [addresses[name], "localhost:*", "127.0.0.1:*", "m.example"]
    assert launch_of("prefect", site).switches["PREFECT_SERVER_API_AUTH_STRING"] == site.prefect_auth != ""
    assert site.client_environment()["PREFECT_API_AUTH_STRING"] == site.prefect_auth


def test_label_studio_is_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    words = command(settings(tmp_path))
    assert words[words.index("--internal-host") + 1] == ServerSettings.model_fields["host"].default == "127.0.0.1"


def test_the_receiver_of_webhooks_listens_on_loopback_alone() -> None:
    with listen.webhook_receiver(0, threading.Event(), "secret") as url:
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        hosts = {
            one.laddr.ip
            for one in psutil.Process().net_connections()
            if one.status == "LISTEN" and one.laddr.port == port
        }
        assert hosts == {"127.0.0.1"}


@pytest.mark.server
def test_the_sockets_of_a_running_server_are_on_loopback(server_url: str) -> None:
    port = int(server_url.rsplit(":", 1)[1])
    hosts = {one.laddr.ip for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port}
    assert hosts == {"127.0.0.1"}
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if not str(address).startswith("127."):
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((str(address), port)) != 0
