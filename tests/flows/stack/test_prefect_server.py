"""The checks before Prefect's server, with a stand-in for Prefect; tests/security/test_door.py attacks a real one."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flows.stack import entrance, prefect_server
from flows.stack.entrance import Codes, code
from flows.stack.prefect_server import FAILURES, Door

AUTH = "rlhf:pass:word"
RIGHT = {"Authorization": f"Basic {b64encode(AUTH.encode()).decode()}"}
WRONG = {"Authorization": f"Basic {b64encode(b'rlhf:guess').decode()}"}
EVENTS = "ws://127.0.0.1:4200/api/events/in"
HOSTS = ["127.0.0.1:4200", "localhost:*", "10.*", "prefect.example.org", "*.lab.example.org:*"]


def behind(client: tuple[str, int] = ("127.0.0.1", 1)) -> TestClient:
    """A client of a stand-in for Prefect behind the door, from an address."""

    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse("inside")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(1008 if await websocket.receive_text() == "wrong" else 1000)

    routes: list[Any] = [WebSocketRoute("/api/events/in", socket)]
    routes += [Route(path, page, methods=["GET", "POST"]) for path in ("/", "/api/health", "/api/flows/filter")]
    return TestClient(Door(Starlette(routes=routes), AUTH, HOSTS), base_url="http://127.0.0.1:4200", client=client)


@pytest.fixture
def client() -> TestClient:
    return behind()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("127.0.0.1:4200", 200), ("LOCALHOST:4200", 200), ("localhost", 200), ("10.1.2.3:80", 200)),
        *(("prefect.example.org", 200), ("Prefect.Example.org.:443", 200), ("a.lab.example.org:4200", 200)),
        *(("evil.example", 400), ("127.0.0.1.evil.example:4200", 400), ("localhost.evil.example", 400), ("", 400)),
        *(("10.evil.example", 400), ("10.1.2.3.evil.example", 400), ("lab.example.org.evil", 400), ("0.0.0.0", 400)),
    ],
)
def test_only_known_host_names_are_answered(client: TestClient, host: str, status: int) -> None:
    """`10.*` is an address for MLflow's variable; as a name it is anybody's."""
    assert client.get("/", headers={"Host": host}).status_code == status
    assert client.get("/api/health", headers={"Host": host}).text == "inside"  # probes ask by address


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(("http://127.0.0.1:4200", 200), ("https://prefect.example.org", 200)),
        *(("http://localhost:4200", 403), ("http://127.0.0.1:9000", 403), ("https://evil.example", 403)),
        *(("null", 403), ("", 403), ("https://prefect.example.org:8443", 403), ("file://127.0.0.1:4200", 403)),
        ("http://x.lab.example.org:4200", 403),
    ],
)
def test_pages_of_other_origins_are_refused_with_the_password_too(client: TestClient, origin: str, status: int) -> None:
    assert client.post("/api/flows/filter", headers={**RIGHT, "Origin": origin}).status_code == status
    headers = {"Origin": origin}
    if status == 200:
        with client.websocket_connect(EVENTS, headers=headers) as socket:
            socket.send_text("right")
    else:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(EVENTS, headers=headers):
            pass


def test_the_api_needs_the_password_and_pages_are_in_no_frame(client: TestClient) -> None:
    assert client.get("/api/flows/filter").status_code == client.post("/api/flows/filter", content="{}").status_code
    assert client.post("/api/flows/filter", headers=WRONG).status_code == client.get("/api").status_code == 401
    assert client.post("/api/flows/filter", headers=RIGHT).text == "inside"
    assert client.get("/").headers["X-Frame-Options"] == "DENY"


def test_guessing_stops_and_shuts_nobody_out_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    local, remote = behind(), behind(("10.0.0.9", 1))
    for client in (local, remote):
        statuses = [client.get("/api/flows/filter", headers=WRONG).status_code for _ in range(FAILURES + 2)]
        assert statuses == [401] * FAILURES + [429] * 2
        forwarded = {**WRONG, "X-Forwarded-For": "10.0.0.1"}
        assert client.get("/api/flows/filter", headers=forwarded).status_code == 429
    assert local.get("/api/flows/filter", headers=RIGHT).status_code == 200
    assert remote.get("/api/flows/filter", headers=RIGHT).status_code == 429  # the right guess shows nothing
    assert remote.post("/enter", content=code(AUTH)).status_code == 429
    assert local.post("/enter", content=code(AUTH)).status_code == 200
    monkeypatch.setattr(prefect_server, "MINUTE_SECONDS", 0.0)
    assert remote.get("/api/flows/filter", headers=RIGHT).status_code == 200


def test_wrong_passwords_on_websockets_count() -> None:
    remote = behind(("10.0.0.9", 1))
    for _ in range(FAILURES):
        with remote.websocket_connect(EVENTS) as socket:
            socket.send_text("wrong")
            socket.receive()
    with pytest.raises(WebSocketDisconnect) as caught, remote.websocket_connect(EVENTS):
        pass
    assert "too many wrong passwords" in caught.value.reason


def test_a_link_gives_the_password_once(client: TestClient) -> None:
    page = client.get("/enter")
    assert page.headers["Cache-Control"] == "no-store" and AUTH not in page.text
    text = code(AUTH)
    assert client.post("/enter", content=text, headers={"Origin": "http://localhost:1"}).status_code == 403
    assert client.post("/enter", content=text).json() == {"password": RIGHT["Authorization"].removeprefix("Basic ")}
    for spent in (text, code("rlhf:other"), text[:-1], "", "\N{SNOWMAN}", "a.b.c"):
        assert "`rlhf status` prints a new one" in client.post("/enter", content=spent.encode()).text
    assert client.post("/enter", content="x" * 10_000).status_code == 413
    assert client.put("/enter").status_code == 405


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that a test sets."""
    now = [1_800_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    yield now


def test_codes_expire_and_are_for_the_server_that_runs(clock: list[float]) -> None:
    before = code(AUTH)
    clock[0] += 5
    codes = Codes(AUTH)
    fresh, late = code(AUTH), code(AUTH)
    assert not codes.use(before), "it may have been used at the server before"
    clock[0] += entrance.SECONDS
    assert codes.use(fresh)
    clock[0] += 1
    assert not codes.use(fresh) and not codes.use(late)
    clock[0] -= 10_000
    assert not codes.use(late), "issued in the future of a clock that was set back"


def test_links_have_the_code_behind_the_hash(tmp_path: Path) -> None:
    from flows.stack import credentials
    from tests.flows.local import site_of

    site = site_of(tmp_path, {"prefect": 4200}, credentials.ensure(tmp_path))
    address, _, text = entrance.link(site).partition("#")
    assert address == "http://127.0.0.1:4200/enter" and Codes(site.prefect_auth).use(text)
    assert entrance.link(site_of(tmp_path, {}, credentials.ensure(tmp_path))) == ""
