"""A proxy in front of the real server that injects faults: 500, no response, and a wrong clock."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Faults:
    """What the proxy does next: `failing` counts down answers with 500, `silent` requests that get none."""

    def __init__(self) -> None:
        self.let_through = 0
        self.failing = 0
        self.silent = 0
        self.clock = timedelta()
        self.asked: list[str] = []

    def next(self) -> str:
        """The fault of the next request, "" for none."""
        if self.let_through:
            self.let_through -= 1
        elif self.failing:
            self.failing -= 1
            return "500"
        elif self.silent:
            self.silent -= 1
            return "silence"
        return ""


@contextmanager
def proxy(url: str) -> Iterator[tuple[str, Faults]]:
    """Yields the proxy's address and its faults."""
    faults, inner = Faults(), httpx.Client(base_url=url, trust_env=False, timeout=60.0)

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.asked.append(f"{self.command} {self.path}")
            fault = faults.next()
            if fault == "silence":
                time.sleep(1.0)
                return
            kept = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
            answer = inner.request(self.command, self.path, content=body, headers=kept)
            date: datetime = parsedate_to_datetime(answer.headers["Date"]) + faults.clock
            self.send_response_only(500 if fault else answer.status_code)
            self.send_header("Date", format_datetime(date, usegmt=True))
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        inner.close()
