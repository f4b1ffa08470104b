"""Servers listen on loopback only unless configured otherwise."""

import socket
import threading
from pathlib import Path

import psutil
import pytest

from flows.stack import credentials, stack
from flows.stack.commands import launch_of
from flows.stack.processes import StackError
from flows.stack.services import NAMES, Name, Site
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
    assert stack._requested_state(tmp_path, "production", False).bind == "0.0.0.0"


def test_label_studio_is_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    words = command(settings(tmp_path))
    assert words[words.index("--internal-host") + 1] == ServerSettings.model_fields["host"].default == "127.0.0.1"


def test_the_receiver_of_webhooks_listens_on_loopback_alone() -> None:
    with listen.webhook_receiver(0, threading.Event()) as url:
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
