"""Webhooks trigger a sync, with a real server; any other request is harmless."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from labeling.errors import ListenFailed, WebhookRefused
from labeling.server import receiver as listen
from labeling.server.client import LabelStudio
from labeling.server.process import ServerSettings, environment
from labeling.server.receiver import LONGEST, action_of, sync_when_woken, webhook_receiver
from labeling.server.webhooks import HEADER, ensure_webhook, has_webhook, secret_of
from labeling.simulation.crew import ranking_result
from labeling.store.store import Store
from labeling.store.sync import sync_project
from labeling.tasks.projects import open_project
from labeling.tasks.tasks import build_tasks
from labeling.tasks.upload import push
from tests.labeling.helpers import response_set, settings

GOOD = b'{"action": "ANNOTATION_CREATED"}'
SECRET = {HEADER: "the secret"}


@pytest.mark.parametrize(
    ("body", "action"),
    [
        (GOOD, "ANNOTATION_CREATED"),
        (b'{"action": "TASKS_DELETED", "project": {"id": 3}}', "TASKS_DELETED"),
        (b"", ""),
        (b"{", ""),
        (b"[1]", ""),
        (b'{"action": 3}', ""),
        (b'{"action": "a\\nb"}', ""),
        (b"\xff\xfe", ""),
        (b'{"action": ""}', ""),
        (b"[" * 100_000, ""),
    ],
)
def test_what_a_message_names(body: bytes, action: str) -> None:
    assert action_of(body) == action


@pytest.fixture
def receiver() -> Iterator[tuple[str, threading.Event]]:
    wake = threading.Event()
    with webhook_receiver(0, wake, "the secret") as url:
        yield url, wake


def test_only_a_message_wakes_and_the_rest_is_logged(
    receiver: tuple[str, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    url, wake = receiver
    with (
        httpx.Client(trust_env=False, headers=SECRET) as http,
        caplog.at_level(logging.WARNING, logger="labeling.server.receiver"),
    ):
        assert http.post(url, content=b"nonsense").status_code == 400
        assert http.get(url).status_code == 501
        assert announced(url, b"Transfer-Encoding: chunked").startswith(b"HTTP/1.0 411")
        assert announced(url, b"Content-Length: %d" % (LONGEST + 1)).startswith(b"HTTP/1.0 413")
        assert not wake.is_set()
        assert len(caplog.messages) == 3 and all("ignored a webhook" in text for text in caplog.messages)
        assert http.post(url, content=GOOD).status_code == 204
    assert wake.is_set()


@pytest.mark.parametrize(
    "headers",
    [{}, {HEADER: "a guess"}, SECRET | {"Origin": "http://127.0.0.1"}, SECRET | {"Sec-Fetch-Site": "same-origin"}],
)
def test_nobody_but_label_studio_wakes_it(receiver: tuple[str, threading.Event], headers: dict[str, str]) -> None:
    url, wake = receiver
    with httpx.Client(trust_env=False, headers=headers) as http:
        assert http.post(url, content=GOOD).status_code == 403
        assert http.options(url).status_code == 501  # no page may send the header
    assert not wake.is_set()


def announced(url: str, length: bytes) -> bytes:
    """The first line of the answer to a message of which only the headers were sent."""
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % length)
        return connection.makefile("rb").readline()


def test_it_is_bound_to_loopback_and_a_taken_port_is_told(receiver: tuple[str, threading.Event]) -> None:
    port = int(receiver[0].rstrip("/").rpartition(":")[2])
    assert receiver[0].startswith("http://127.0.0.1:")
    with pytest.raises(ListenFailed, match="choose another with --port"), webhook_receiver(port, threading.Event(), ""):
        pass
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_it_syncs_at_once_when_woken_and_when_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "SETTLE_SECONDS", 0.05)
    wake, stop, times = threading.Event(), threading.Event(), []

    def sync() -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            wake.set()  # a message that comes while it syncs brings another one
        if len(times) == 3:
            stop.set()

    sync_when_woken(sync, wake, 2.0, stop)
    assert times[1] - times[0] < 1.9 <= 2.0 <= times[2] - times[1]


@pytest.mark.server
def test_an_annotation_wakes_a_sync_through_a_server_that_may_call_us(owner: LabelStudio) -> None:
    wake, store = threading.Event(), Store()
    with webhook_receiver(0, wake, secret_of(owner)) as url:
        project = open_project(owner, "ranking", "hooked", 1)
        (task,), _ = build_tasks("ranking", [response_set(1)], 0)
        ids = push(owner, project, [task]).ids
        sync_project(owner, store, project.id)
        assert ensure_webhook(owner, project.id, url) and not ensure_webhook(owner, project.id, url)
        assert has_webhook(owner, project.id, url) and not has_webhook(owner, project.id, url + "x")
        owner.annotate(ids[task.uid], ranking_result(task.shown), 1.0)
        assert wake.wait(60)
        synced = sync_project(owner, store, project.id)
        assert synced is not None and synced.changes.added == 1
    store.close()


@pytest.mark.server
def test_a_server_that_does_not_take_the_address_says_what_to_do(owner: LabelStudio) -> None:
    project = open_project(owner, "ranking", "not hooked", 1)
    with pytest.raises(WebhookRefused, match="RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS=1"):
        ensure_webhook(owner, project.id, "http://no address/")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_server_calls_its_own_machine_only_when_it_is_told_to(allowed: bool, tmp_path: Path) -> None:
    told = settings(tmp_path).model_copy(update={"local_webhooks": allowed})
    assert environment(told)["LABEL_STUDIO_SSRF_PROTECTION_ENABLED"] == ("false" if allowed else "true")
    assert not ServerSettings.model_fields["local_webhooks"].default
