"""The client against a misbehaving server."""

import json
import threading
import time
import traceback
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import jwt
import pytest

from labeling.errors import BadCredentials, RequestRefused, ServerUnavailable, UnexpectedAnswer
from labeling.server.client import LabelStudio
from labeling.server.process import wait_until_ready
from labeling.server.users import members
from tests.labeling.helpers import free_port


class Script:
    """What the server answers next, and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.headers: list[Message] = []
        self.bodies: list[bytes] = []


@pytest.fixture
def fake() -> Iterator[tuple[str, Script]]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            script.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            script.asked.append(f"{self.command} {self.path}")
            script.headers.append(self.headers)
            status, body = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", script
    server.shutdown()
    thread.join()
    server.server_close()


def client(url: str) -> LabelStudio:
    return LabelStudio(url, "f" * 40, timeout_seconds=5.0, backoff_seconds=0.01)


def test_every_request_goes_through_the_sdk(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(200, '{"id": 1}'), (200, '{"tasks": [], "total": 0}'), (201, '{"task_ids": [1]}')]
    with client(url) as api:
        assert api.annotate(7, [{"type": "choices"}], 2.5) == 1  # a method of the SDK
        api.tasks(3)  # a raw request of the SDK
        api.import_tasks(3, [{"data": {"text": "caf\u00e9"}}])
    assert [line.split("?")[0] for line in script.asked] == [
        "POST /api/tasks/7/annotations/",
        "GET /api/tasks",
        "POST /api/projects/3/import",
    ]
    for headers in script.headers:
        assert headers["User-Agent"] == f"label_studio_sdk/{version('label-studio-sdk')}"
        assert headers["X-Fern-SDK-Name"] == "label-studio-sdk"
        assert headers["Authorization"] == f"Token {'f' * 40}"
    assert script.headers[-1]["Content-Type"] == "application/json"
    assert script.bodies[-1] == '[{"data":{"text":"caf\u00e9"}}]'.encode()


def test_rows_are_what_the_server_sent(fake: tuple[str, Script]) -> None:
    """The models of the SDK would make objects of the times, and the key of a project holds one as it was written."""
    url, script = fake
    row = {
        "id": 1,
        "updated_at": "2026-11-21T02:20:07.120000Z",
        "data": {"n": 1.0},
        "annotations": [{"lead_time": "1"}],
    }
    project = {"id": 3, "title": "t", "created_at": "2026-11-21T02:20:07.12Z", "new_in_1_24": {"a": [None]}}
    script.answers = [
        (200, json.dumps({"tasks": [row], "total": 1})),
        (200, json.dumps({"results": [project], "next": None})),
        (200, json.dumps(project)),
    ]
    with client(url) as api:
        assert list(api.tasks_with_annotations(3)) == [row]
        assert list(api.projects()) == [project] == [api.project(3)]


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # a line of the SDK
def test_a_personal_access_token_is_exchanged_for_a_bearer(fake: tuple[str, Script]) -> None:
    url, script = fake
    access = personal_token(3600, "access")
    script.answers = [(200, json.dumps({"access": access})), (200, '{"id": 1}')]
    with LabelStudio(url, personal_token(3600)) as api:
        assert api.whoami() == {"id": 1}
    assert script.asked == ["POST /api/token/refresh/", "GET /api/current-user/whoami"]
    assert script.headers[-1]["Authorization"] == f"Bearer {access}"


def test_a_personal_access_token_that_has_expired_is_refused_and_not_repeated() -> None:
    token = personal_token(-3600)
    with pytest.raises(BadCredentials, match="has expired") as caught:
        LabelStudio("http://127.0.0.1:1", token)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert not [line for line in frames.format() if token in line and "label_studio_sdk" in line]


def personal_token(seconds: float, kind: str = "refresh") -> str:
    """A JSON web token that ends in so many seconds."""
    return jwt.encode({"exp": time.time() + seconds, "token_type": kind}, "k" * 32, algorithm="HS256")


def test_a_failing_server_is_asked_again_and_then_named(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(500, "oh no")]
    with client(url) as api, pytest.raises(ServerUnavailable, match=r"returned 500.*its log says why"):
        api.whoami()
    assert len(script.asked) == 4


def test_a_passing_fault_is_survived(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(500, ""), (502, ""), (200, '{"id": 1}')]
    with client(url) as api:
        assert api.whoami() == {"id": 1}
    assert len(script.asked) == 3


def test_what_may_have_been_done_is_not_done_twice(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(500, ""), (201, '{"id": 1}')]
    with client(url) as api, pytest.raises(ServerUnavailable):
        api.annotate(1, [], 1.0)
    assert len(script.asked) == 1
    script.answers, script.asked = [(503, ""), (201, '{"id": 8}')], []
    with client(url) as api:
        assert api.annotate(1, [], 1.0) == 8
    assert len(script.asked) == 2


def test_a_refusal_is_not_repeated(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(404, "no such project")]
    with client(url) as api, pytest.raises(RequestRefused, match="404: no such project"):
        api.project(7)
    script.answers = [(401, "")]
    with client(url) as api, pytest.raises(BadCredentials):
        api.whoami()
    script.answers = [(409, '{"detail": "taken"}')]  # which the SDK by itself would ask again
    with (
        client(url) as api,
        pytest.raises(RequestRefused, match=r"POST http://.*/annotations/ was refused with 409: .*taken"),
    ):
        api.annotate(1, [], 1.0)
    assert len(script.asked) == 3


def test_answers_of_another_shape_are_errors(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(200, "<html>a proxy's page</html>")]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="did not respond with JSON"):
        api.whoami()
    script.answers = [(200, '{"id": 1')]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="did not respond with JSON"):
        api.whoami()
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="did not respond with JSON"):
        api.annotate(1, [], 1.0)
    script.answers = [(200, "[]")]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="whoami is list, not dict"):
        api.whoami()
    for body, message in (
        ("[]", "sent a response that label-studio-sdk cannot parse"),
        ("{}", "annotation is NoneType, not int"),
        ("null", r"POST http://.*/api/tasks/1/annotations/ sent a response that label-studio-sdk cannot parse"),
    ):
        script.answers = [(201, body)]
        with client(url) as api, pytest.raises(UnexpectedAnswer, match=message):
            api.annotate(1, [], 1.0)
    script.answers = [(200, "<html>a page to log in</html>")]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="did not respond with JSON"):
        api.delete_tasks(1, [1])
    for body in ('[{"id": 1}]', "[null]", "[{}]"):
        script.answers = [(200, body)]
        with client(url) as api, pytest.raises(UnexpectedAnswer, match=r"GET http://.*/api/users sent a response"):
            members(api)
    script.answers = [(201, '{"task_ids": [1]}')]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="2 tasks were sent to project 3, 1 were stored"):
        api.import_tasks(3, [{"data": {}}, {"data": {}}])


def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with client(url) as api, pytest.raises(ServerUnavailable, match="`rlhf up`"):
        api.whoami()
    with pytest.raises(ServerUnavailable, match="not ready after 0 s"):
        wait_until_ready(url, "f" * 40, timeout_seconds=0.1)
