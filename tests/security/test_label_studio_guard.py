"""The guard within Label Studio: what an annotator's account may do, and which addresses the server connects to."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from labeling.errors import RequestRefused
from labeling.server.client import LabelStudio
from labeling.server.guard.rlhf_guard import body_refusal, is_open, is_outside
from labeling.server.process import running_server
from labeling.server.users import ensure_account
from labeling.tasks.projects import open_project
from labeling.tasks.tasks import build_tasks
from labeling.tasks.upload import push
from tests.labeling.helpers import TOKEN, response_set, settings
from tests.labeling.judgements.test_parse import preference

INSIDE = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("::1", "::", "::ffff:127.0.0.1", "fe80::1%eth0", "fd00::1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"),
    *("localhost", "a.name", "2130706433"),
)


@pytest.mark.parametrize("host", INSIDE)
def test_no_address_of_the_machine_or_its_network_is_connected_to(host: str) -> None:
    assert not is_outside((host, 80))


def test_public_addresses_are_and_sockets_in_the_file_system_are_not() -> None:
    assert is_outside(("1.1.1.1", 443)) and is_outside(("2606:4700::1111", 443, 0, 0))
    assert not is_outside("/var/run/docker.sock") and not is_outside(b"\0abstract")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        assert not is_outside((probe.getsockname()[0], 80))


@pytest.mark.parametrize(
    ("permission", "view", "method", "expected"),
    [
        ("projects.view", "ProjectAPI", "GET", True),
        ("projects.view", "ProjectActionsAPI", "POST", False),
        ("organizations.invite", "OrganizationInviteAPI", "GET", False),
        ("storages.view", "AllImportStorageListAPI", "GET", False),
        ("annotations.create", "AnnotationsListAPI", "POST", True),
        ("", "SomethingNew", "POST", False),
    ],
)
def test_what_is_not_named_is_the_owners(permission: str, view: str, method: str, expected: bool) -> None:
    assert is_open(permission, view, method) is expected


def test_bodies_are_plain_and_in_ones_own_name() -> None:
    assert not body_refusal({"result": [], "completed_by": 5}, 5) and not body_refusal({}, 5)
    assert "own name" in body_refusal({"completed_by": 6}, 5)
    assert "plain JSON" in body_refusal({"result": ["\ud800"]}, 5)
    assert "plain JSON" in body_refusal({"lead_time": float("inf")}, 5)
    assert body_refusal([1], 5) == "not an object"


@pytest.mark.server
def test_an_annotator_annotates_and_does_not_administer(owner: LabelStudio) -> None:
    project = open_project(owner, "pairwise", "guarded", 2)
    tasks = build_tasks("pairwise", [response_set(number) for number in range(2)], 0)[0]
    first, second = push(owner, project, tasks).ids.values()
    mine, other = (ensure_account(owner, f"{name}@guard.local", f"password of {name}") for name in ("mia", "ned"))
    with (
        LabelStudio(owner.url, mine.token.get_secret_value()) as mia,
        LabelStudio(owner.url, other.token.get_secret_value()) as ned,
    ):
        number, foreign = mia.annotate(first, [preference("a_1")], 1.0), ned.annotate(first, [preference("b_1")], 1.0)
        mia.patch(f"/api/annotations/{number}/", {"result": [preference("a_2")]})
        mia.post(f"/api/tasks/{second}/drafts", {"result": [preference("a_2")]})
        everything = {"selectedItems": {"all": True, "excluded": []}}
        assert mia.post("/api/dm/actions", everything, id="next_task", project=project.id)["id"] == second
        path = f"/api/projects/{project.id}"
        forged = {"result": [preference("b_3")], "completed_by": other.id}
        attempts = (
            lambda: mia.get("/api/invite"),
            lambda: mia.post("/api/invite/reset-token", {}),
            lambda: mia.post("/api/projects", {"title": "mine", "description": "Made by rlhf-flows"}),
            lambda: mia.patch(f"{path}/", {"maximum_annotations": 50}),
            lambda: mia.delete(f"{path}/"),
            lambda: mia.delete(f"/api/tasks/{first}/"),
            lambda: mia.patch(f"/api/tasks/{first}/", {"data": {}}),
            lambda: mia.delete_tasks(project.id, [first]),
            lambda: mia.import_tasks(project.id, [{"data": tasks[0].data}]),
            lambda: mia.post("/api/webhooks/", {"project": project.id, "url": "https://example.org"}),
            lambda: mia.post("/api/storages/gcs/validate", {"project": project.id, "bucket": "b"}),
            lambda: mia.post("/api/ml/", {"project": project.id, "url": "https://example.org"}),
            lambda: mia.patch(f"/api/users/{other.id}/", {"first_name": "Mia"}),
            lambda: mia.post(f"/api/tasks/{second}/annotations/", forged),
            lambda: mia.patch(f"/api/annotations/{number}/", {"completed_by": other.id}),
            lambda: mia.patch(f"/api/annotations/{foreign}/", {"result": []}),
            lambda: mia.delete(f"/api/annotations/{foreign}/"),
            lambda: mia.post(f"/api/tasks/{second}/annotations/", {"result": [{"x": 2_000_000 * "y"}]}),
        )
        for attempt in attempts:
            with pytest.raises(RequestRefused, match="refused with 403"):
                attempt()
    assert owner.project(project.id)["task_number"] == 2


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback that notes who calls it: its port, and the paths."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.path)
            self.send_error(400)

        do_GET = do_PUT = do_HEAD = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port, calls
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.long
def test_not_even_the_owner_makes_the_server_call_its_own_machine(
    tmp_path: Path, listener: tuple[int, list[str]], label_studio_data: Path
) -> None:
    port, calls = listener
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "private_key": pem, "client_email": "a@b.iam", "private_key_id": "1"}
    shutil.copytree(label_studio_data, tmp_path / "data")
    guarded = settings(tmp_path / "data").model_copy(update={"local_webhooks": False})
    with running_server(guarded, timeout_seconds=600) as url, LabelStudio(url, TOKEN, timeout_seconds=30.0) as owner:
        project = open_project(owner, "pairwise", "addresses", 2)
        headers = {"Authorization": f"Token {TOKEN}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as http:
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                credentials = json.dumps(account | {"token_uri": f"http://{host}:{port}/token"})
                storage = {"project": project.id, "bucket": "b", "google_application_credentials": credentials}
                try:  # Google's library repeats a refused connection for minutes
                    http.post("/api/storages/gcs/validate", json=storage)
                except httpx.ReadTimeout:
                    continue
            s3 = {"project": project.id, "bucket": "b", "s3_endpoint": f"http://127.0.0.1:{port}"}
            http.post("/api/storages/s3/validate", json=s3)
            http.post("/api/webhooks/", json={"project": project.id, "url": f"http://127.0.0.1:{port}/hook"})
            http.post("/api/ml/", json={"project": project.id, "url": f"http://127.0.0.1:{port}/ml"})
            http.post(f"/api/projects/{project.id}/import", json={"url": f"http://127.0.0.1:{port}/rows.json"})
    assert calls == []
