"""Notifications: each kind arrives at a real receiver, secrets appear nowhere, and a dead receiver delays nothing."""

import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.states import Crashed, Running
from typer.testing import CliRunner

from alignment.errors import ConfigError, GateError, TrainingError
from flows import notifications
from flows.annotation.wait import finish_waiting
from flows.annotation.waiting import Standing
from flows.cli import notify as command
from flows.cli.main import app
from flows.deployments.automations import set_up_automations
from flows.deployments.watcher import notify_crash
from flows.notifications import deliver, notify, notifying, store
from flows.recipe.channels import EVENTS, Channel, home_channels, merged, write_home_channels
from flows.recipe.schema import load_recipe
from flows.tracking import logs
from tests.conftest import TINY

pytestmark = pytest.mark.server
TOKEN = "T0ken-that-nobody-may-see"
Messages = Queue[dict[str, str]]


class Receiver(BaseHTTPRequestHandler):
    """A webhook that keeps what it gets, and refuses what is sent to /refused."""

    messages: Messages

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.messages.put(body)
        self.send_response(500 if "refused" in self.path else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[str, Messages]]:
    """The address of a webhook, with a secret in its path, and its messages."""
    messages: Messages = Queue()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Kept", (Receiver,), {"messages": messages})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}/hooks/{TOKEN}", messages
        server.shutdown()


@pytest.fixture
def blocks(workplace: Path, receiver: tuple[str, Messages]) -> Iterator[Messages]:
    """Prefect has a webhook and a Slack block that lead to the receiver; its messages."""
    address, messages = receiver
    store("custom-webhook/team", f"http://{address}")
    store("slack-webhook/team", f"json://{address}")  # Apprise's form of an address that is not Slack's own
    yield messages
    (workplace / "notify.yaml").unlink(missing_ok=True)
    while not messages.empty():
        messages.get()


def received(messages: Messages, count: int) -> list[dict[str, str]]:
    return [messages.get(timeout=20) for _ in range(count)]


def standing(done: int, needed: int, hours_left: float = 1.0) -> Standing:
    deadline = datetime.now(UTC) + timedelta(hours=hours_left)
    return Standing(done=done, needed=needed, deadline=deadline, reason=f"{done} of {needed} are judged")


def test_each_kind_arrives_and_no_secret_is_logged(
    workplace: Path, blocks: Messages, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    channel = Channel(to="custom-webhook/team")

    @flow(name="told", persist_result=False)
    def told(error: str) -> None:
        with notifying((channel,), "tiny, seed 0"), logs.log_to_file("told"):
            if not error:
                finish_waiting(standing(10, 10), "all are judged")
                finish_waiting(standing(9, 10), "9 of 10 are judged")
                finish_waiting(standing(5, 10, -1.0), "the deadline is reached")
                finish_waiting(standing(5, 10).model_copy(update={"reason": ""}), "a person resumed the run")
                return
            monkeypatch.setenv("SOME_PASSWORD", TOKEN)
            raise GateError("0.51 is too little") if error == "gate" else TrainingError(f"diverged at {TOKEN}")

    told("")
    with pytest.raises(GateError):
        told("gate")
    monkeypatch.setattr(notifications, "LOW_BYTES", 1 << 60)
    with pytest.raises(TrainingError):
        told("died")
    arrived = {message["subject"]: message["text"] for message in received(blocks, 6)}
    assert {*arrived} == {f"tiny, seed 0: {title}" for title in notifications.TITLES.values()}
    assert {*notifications.TITLES} == {*EVENTS}
    assert "0.51 is too little" in arrived["tiny, seed 0: a gate was missed"]
    died = arrived["tiny, seed 0: the run died"]
    assert "TrainingError: diverged at" in died and "/runs/flow-run/" in died
    assert "are left on the disk of" in arrived["tiny, seed 0: the disk is getting full"]
    written = [caplog.text, *(path.read_text() for path in workplace.rglob("*.jsonl"))]
    assert "custom-webhook/team was told" in caplog.text and not any(f"hooks/{TOKEN}" in text for text in written)


def test_a_receiver_that_does_not_take_a_message_is_named_without_its_address(
    workplace: Path, blocks: Messages, receiver: tuple[str, Messages], caplog: pytest.LogCaptureFixture
) -> None:
    """One refuses, one has no listener, and one is not there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    store("slack-webhook/dead", f"json://127.0.0.1:{free}/{TOKEN}")
    store("custom-webhook/dead", f"http://127.0.0.1:{free}/{TOKEN}")
    store("custom-webhook/refusing", f"http://{receiver[0]}/refused")
    problems = {
        "slack-webhook/dead": "the receiver does not take it, or does not answer",
        "custom-webhook/dead": "the receiver cannot be reached (ConnectError)",
        "custom-webhook/refusing": "the receiver answers 500",
        "slack-webhook/nobody": "Prefect has no such block; `rlhf notify add slack-webhook/nobody` stores it",
    }
    assert {name: deliver(name, "tiny", "a text") for name in problems} == problems
    notifications.deliver_or_log("custom-webhook/refusing", "tiny: people are done", "a text")
    assert "custom-webhook/refusing was not told 'tiny: people are done': the receiver answers 500" in caplog.text
    assert TOKEN not in caplog.text


def test_a_receiver_that_never_answers_delays_nothing(
    workplace: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after a second here, long before its own timeout of ten."""
    monkeypatch.setattr(notifications, "CLOSE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store("custom-webhook/silent", f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}")
        started = time.monotonic()
        with notifying([Channel(to="custom-webhook/silent")], "tiny"):
            notify("people_done", "all are judged")
            worked = time.monotonic() - started
        assert worked < 5.0 and time.monotonic() - started < 9.0
    assert "1 notifications were not delivered within 1 s, and are given up" in caplog.text
    assert TOKEN not in caplog.text


def test_the_home_and_the_recipe_name_channels_and_no_addresses(workplace: Path, blocks: Messages) -> None:
    write_home_channels(workplace, [Channel(to="slack-webhook/team", events=("gate_failed",))])
    with notifying((Channel(to="slack-webhook/team", events=("people_done",)),), "tiny"):
        notify("people_done", "all are judged")
        notify("gate_failed", "missed")
        notify("quota_reached", "nobody is told")
    assert sorted(message["title"] for message in received(blocks, 2)) == [
        "tiny: a gate was missed",
        "tiny: people are done",
    ]
    assert blocks.empty()
    with pytest.raises(ConfigError, match=r"notify\.0\.to: it names no notification block"):
        load_recipe(str(TINY), ["notify=[{to: https://hooks.slack.com/services/T/B/x}]"])
    (workplace / "notify.yaml").write_text("- {to: slack-webhook/team, events: [everything]}\n")
    with pytest.raises(ConfigError, match=r"notify\.yaml: 0\.events\.0"):
        home_channels(workplace)


def test_channels_are_merged() -> None:
    one, other = Channel(to="email/lead", events=("run_died",)), Channel(to="email/lead", events=("disk_low",))
    assert merged([one, other]) == (Channel(to="email/lead", events=("run_died", "disk_low")),)


def test_crashed_runs_are_told_by_the_watcher_to_the_recipe_and_by_prefect_to_the_home(
    workplace: Path, blocks: Messages
) -> None:
    channels = [Channel(to="custom-webhook/team", events=("run_died",))]
    write_home_channels(workplace, channels)
    assert set_up_automations(channels) == set_up_automations(channels)

    @flow(name="rlhf", persist_result=False)
    def killed() -> str:
        return str(flow_run.id)

    with get_client(sync_client=True) as prefect:
        names = [one.name for one in prefect.read_automations()]
        assert names == ["rlhf: a run crashed, tell custom-webhook/team"]
        run = prefect.create_flow_run(killed, state=Running())
        prefect.set_flow_run_state(run.id, Crashed(message="no heartbeat"), force=True)
        (message,) = received(blocks, 1)
        assert message["subject"] == f"{run.name}: the run died" and "no heartbeat" in message["text"]
    recipe = {"notify": [{"to": "slack-webhook/team"}, {"to": "custom-webhook/team"}]}
    notify_crash(FlowRun(flow_id=run.flow_id, name="otter", parameters={"recipe": recipe}), "otter is restarted")
    (message,) = received(blocks, 1)
    assert (message["title"], message["message"]) == ("otter: the run died", "otter is restarted")
    assert set_up_automations([]) == [] and blocks.empty()


class Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs; keeps what comes after DATA."""

    mails: Queue[str]

    def handle(self) -> None:
        self.wfile.write(b"220 ready\r\n")
        while line := self.rfile.readline():
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                lines = [*iter(self.rfile.readline, b".\r\n")]
                self.mails.put(b"".join(lines).decode())
            self.wfile.write(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 ok\r\n")


def test_mail_arrives(workplace: Path) -> None:
    mails: Queue[str] = Queue()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Kept", (Mailbox,), {"mails": mails})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"mailto://127.0.0.1:{server.server_address[1]}?from=rlhf@example.org&to=lead@example.org"
        store("email/lead", address)
        assert deliver("email/lead", "tiny: people are done", "960 of 960 are judged") == ""
        server.shutdown()
    mail = mails.get(timeout=5)
    assert "To: lead@example.org" in mail and "tiny: people are done" in mail and "960 of 960" in mail
    with pytest.raises(ConfigError, match="e-mail goes to an address mailtos"):
        store("email/lead", "https://example.org")


def test_the_command_stores_tests_and_lists(
    workplace: Path, blocks: Messages, receiver: tuple[str, Messages], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: str, text: str = "") -> Any:
        monkeypatch.setattr(command, "queries", lambda *_: nullcontext())
        return CliRunner().invoke(app, ["notify", *words], input=text)

    added = run("add", "custom-webhook/ops", "--events", "run_died,disk_low", text=f"http://{receiver[0]}\n")
    assert added.exit_code == 0 and TOKEN not in added.output, added.output
    assert home_channels(workplace) == (Channel(to="custom-webhook/ops", events=("run_died", "disk_low")),)
    assert TOKEN not in (workplace / "notify.yaml").read_text()
    with get_client(sync_client=True) as prefect:
        block = prefect.read_block_document_by_name("ops", "custom-webhook", include_secrets=False)
        assert TOKEN not in block.model_dump_json()
    shown = run("test")
    assert shown.exit_code == 0 and "delivered" in shown.output
    assert received(blocks, 1)[0]["subject"] == "rlhf: a test"
    assert "run_died, disk_low" in run("list").output
    missing = run("test", "slack-webhook/nobody")
    assert missing.exit_code == 1 and "Prefect has no such block" in missing.output
    assert isinstance(run("add", "ops", text="http://x").exception, ConfigError)
    assert isinstance(run("add", "custom-webhook/x", text="\n").exception, ConfigError)
    set_up_automations([])
