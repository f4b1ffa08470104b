"""The client against a server that misbehaves on purpose."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from labeling.errors import BadCredentials, RequestRefused, ServerUnavailable, UnexpectedAnswer
from labeling.server.client import LabelStudio
from labeling.server.process import wait_until_ready
from tests.labeling.helpers import free_port


class Script:
    """What the server answers next, and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.asked: list[str] = []


@pytest.fixture
def fake() -> Iterator[tuple[str, Script]]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            script.asked.append(f"{self.command} {self.path}")
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


def test_a_failing_server_is_asked_again_and_then_named(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(500, "oh no")]
    with client(url) as api, pytest.raises(ServerUnavailable, match=r"answers 500.*`rlhf up`"):
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
    assert len(script.asked) == 2


def test_answers_of_another_shape_are_errors(fake: tuple[str, Script]) -> None:
    url, script = fake
    script.answers = [(200, "<html>a proxy's page</html>")]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="did not answer with JSON"):
        api.whoami()
    script.answers = [(200, "[]")]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="whoami is list, not dict"):
        api.whoami()
    script.answers = [(201, '{"task_ids": [1]}')]
    with client(url) as api, pytest.raises(UnexpectedAnswer, match="2 tasks were sent to project 3, 1 were stored"):
        api.import_tasks(3, [{"data": {}}, {"data": {}}])


def test_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with client(url) as api, pytest.raises(ServerUnavailable, match="`rlhf up`"):
        api.whoami()
    with pytest.raises(ServerUnavailable, match="not ready after 0 s"):
        wait_until_ready(url, "f" * 40, timeout_seconds=0.1)
