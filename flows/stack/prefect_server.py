"""Prefect's server as `prefect server start` runs it, behind checks of its own:

- only requests to known host names, so that no page reaches it under another name (DNS rebinding);
- no requests and no WebSockets from pages of another origin;
- the API only with the password, and at most 20 wrong ones a minute from an address;
- no pages in frames of others;
- /enter, which exchanges the code of a one-time link for the password.

    python -m flows.stack.prefect_server --host 127.0.0.1 --port 4200 --allowed-hosts localhost,127.0.0.1
"""

import argparse
import hmac
import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_address

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows import mail  # noqa: F401 - a block that automations of Prefect may name
from flows.stack.entrance import PATH, Codes
from flows.stack.services import is_loopback

API = "/api"
WITH_PASSWORD = (f"{API}/", "/docs/", "/redoc/", "/openapi.json/")  # what needs it, with a slash after the path
OPEN = {"/api/health", "/api/ready"}  # for probes, which ask by address; they say no more than `true`
FAILURES, MINUTE_SECONDS, ADDRESSES = 20, 60.0, 10_000
LONGEST_CODE = 1000  # bytes
POLICY_VIOLATION = 1008  # with which Prefect closes a WebSocket after a wrong password
ENTER = """<!doctype html><meta charset="utf-8"><title>Prefect</title><p id="text">Opening Prefect…</p>
<script>
const code = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
fetch(location.pathname, {method: "POST", body: code}).then(async answer => {
  if (!answer.ok) throw new Error(await answer.text());
  localStorage.setItem("prefect-password", (await answer.json()).password);
  location.replace("/");
}).catch(error => { document.getElementById("text").textContent = error.message; });
</script>
"""
ENTER_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
SPENT = "This link was used already, or is older than ten minutes: `rlhf status` prints a new one."


class Failures:
    """Wrong passwords of the last minute, by the address that sent them."""

    def __init__(self) -> None:
        """None yet."""
        self._times: dict[str, deque[float]] = {}

    def add(self, address: str) -> None:
        """Count a wrong password; the oldest addresses are forgotten when there are too many."""
        times = self._times.pop(address, deque(maxlen=FAILURES))
        times.append(time.monotonic())
        self._times[address] = times
        if len(self._times) > ADDRESSES:
            del self._times[next(iter(self._times))]

    def too_many(self, address: str) -> bool:
        """Whether the address has sent all wrong passwords that it may send in a minute."""
        times = self._times.get(address)
        return times is not None and len(times) == FAILURES and time.monotonic() - times[0] < MINUTE_SECONDS


class Door:
    """The checks before Prefect, as ASGI middleware."""

    def __init__(self, app: ASGIApp, auth: str, hosts: Sequence[str]) -> None:
        """`auth` is USER:PASSWORD; `hosts` are names or patterns with *, with or without a port."""
        self._app = app
        self._password = b64encode(auth.encode()).decode()
        self._hosts = [_name(host) for host in hosts]
        self._public = [host.lower() for host in hosts if not is_loopback(_name(host))]
        self._codes = Codes(auth)
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, answer it, or pass it on."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN):
            await self._app(scope, receive, send)
            return
        response = self._refusal(HTTPConnection(scope))
        if response is None and scope["path"] == PATH and scope["type"] == "http":
            response = await self._enter(Request(scope, receive))
        if response is None:
            await self._app(scope, receive, self._observed(scope, send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": bytes(response.body).decode()})
        else:
            await response(scope, receive, send)

    def _refusal(self, connection: HTTPConnection) -> Response | None:
        headers = connection.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not _matches(_name(host), self._hosts):
            return PlainTextResponse("unknown host name: add it to RLHF_ALLOWED_HOSTS", 400)
        if origin is not None and not self._is_own(origin, host):
            return PlainTextResponse("requests from pages of another origin are refused", 403)
        if connection.scope["type"] == "websocket":  # its password comes in the first message, to Prefect
            return self._too_many() if self._is_shut_out(_address(connection), right=True) else None
        if not f"{connection.scope['path']}/".startswith(WITH_PASSWORD):
            return None
        return self._wrong_password(connection)

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is Prefect's own: the same host and port, or an allowed name, as a proxy in front
        has when it changes the Host header."""
        scheme, _, netloc = origin.lower().partition("://")
        return scheme in ("http", "https") and netloc in (host.lower(), *self._public)

    def _is_shut_out(self, address: str, *, right: bool) -> bool:
        """Whether an address has sent too many wrong passwords. From loopback a right one passes all the same: every
        account of the machine has that address, and none may shut out the others."""
        return self._failures.too_many(address) and not (right and is_loopback(address))

    def _wrong_password(self, connection: HTTPConnection) -> Response | None:
        sent, address = connection.headers.get("authorization", ""), _address(connection)
        right = hmac.compare_digest(sent.encode(), f"Basic {self._password}".encode())
        if self._is_shut_out(address, right=right):
            return self._too_many()
        if right:
            return None
        if sent:
            self._failures.add(address)
        return JSONResponse({"exception_message": "Unauthorized"}, 401)

    @staticmethod
    def _too_many() -> Response:
        headers = {"Retry-After": str(int(MINUTE_SECONDS))}
        return PlainTextResponse("too many wrong passwords: wait a minute", 429, headers)

    async def _enter(self, request: Request) -> Response:
        address = _address(request)
        if request.method == "GET":
            return HTMLResponse(ENTER, headers=ENTER_HEADERS)
        if request.method != "POST":
            return PlainTextResponse("use GET or POST", 405)
        text = b""
        async for part in request.stream():
            text += part
            if len(text) > LONGEST_CODE:
                return PlainTextResponse("too long", 413)
        right = self._codes.use(text.decode(errors="replace"))
        if self._is_shut_out(address, right=right):
            return self._too_many()
        if right:
            return JSONResponse({"password": self._password}, headers=ENTER_HEADERS)
        self._failures.add(address)
        return PlainTextResponse(SPENT, 403, ENTER_HEADERS)

    def _observed(self, scope: Scope, send: Send) -> Send:
        """`send`, with wrong passwords on WebSockets counted, and pages kept out of frames."""

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Frame-Options"] = "DENY"
            elif message["type"] == "websocket.close" and message.get("code") == POLICY_VIOLATION:
                self._failures.add(_address(HTTPConnection(scope)))
            await send(message)

        return observe


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client is not None else ""


def _name(host: str) -> str:
    """A host in lower case without its port."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return name.lower().rstrip(".")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is among the patterns. In patterns that look like addresses, * stands for numbers only: else the
    name 10.example.org would match 10.*."""
    if any(name == pattern for pattern in patterns):
        return True
    wild = [pattern for pattern in patterns if "*" in pattern and fnmatchcase(name, pattern)]
    return any(not pattern[0].isdigit() or _is_ip(name) for pattern in wild)


def _is_ip(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def main() -> None:
    """Serve Prefect until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True, help="the address to listen on")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--allowed-hosts", required=True, help="the names under which it may be asked, with commas")
    options = parser.parse_args()
    auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    if ":" not in auth:
        parser.error("PREFECT_SERVER_API_AUTH_STRING must be USER:PASSWORD: Prefect is not started without a password")
    api = get_current_settings().server.api
    uvicorn.run(
        Door(create_app(final=True), auth, options.allowed_hosts.split(",")),
        host=options.host,
        port=options.port,
        proxy_headers=False,  # anybody could write another address into X-Forwarded-For
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        log_level=get_current_settings().server.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
