"""A webhook receiver: a webhook triggers a sync; its content is not used.

Only Label Studio's own messages count: they have a secret header, which no page and no other account of the machine can
send. Label Studio never resends a webhook, so a sync also runs periodically.
"""

import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from labeling.errors import ListenFailed
from labeling.server.webhooks import HEADER

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
LONGEST = 1_000_000  # bytes of a message
READ_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # a submit sends several webhooks


def action_of(body: bytes) -> str:
    """The action named in a webhook, "" if the body is not a Label Studio webhook."""
    try:
        payload: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    action = payload.get("action") if isinstance(payload, dict) else None
    return action if isinstance(action, str) and action.isascii() and action.replace("_", "").isalpha() else ""


class Receiver(BaseHTTPRequestHandler):
    """Responds at once, since the annotator's submit waits for it; a valid webhook sets `wake`."""

    wake: threading.Event
    secret: str
    timeout = READ_SECONDS

    def do_POST(self) -> None:
        """Receive a webhook."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            log.warning("ignored a webhook of %s bytes from %s", length or "unknown", self.client_address[0])
            self._answer(413 if length.isdecimal() else 411)
            return
        body = self.rfile.read(int(length))
        if not self._is_from_label_studio():
            log.warning("ignored a webhook without the secret header, from %s", self.client_address[0])
            self._answer(403)
            return
        action = action_of(body)
        if action:
            self.wake.set()
        else:
            log.warning("ignored a webhook without an action, from %s", self.client_address[0])
        self._answer(204 if action else 400)

    def _is_from_label_studio(self) -> bool:
        """Browsers always send one of the first two, and cannot leave it out."""
        if "Origin" in self.headers or "Sec-Fetch-Site" in self.headers:
            return False
        return hmac.compare_digest(self.headers.get(HEADER, "").encode(), self.secret.encode())

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests at debug level instead of to stderr."""
        log.debug(format, *args)


@contextmanager
def webhook_receiver(port: int, wake: threading.Event, secret: str) -> Iterator[str]:
    """Receive on loopback for the duration of the block; yields the URL. Port 0 selects a free port.

    `secret` is that of the account whose webhooks count (`secret_of`).

    Raises ListenFailed if the port is in use.
    """
    handler = type("WakingReceiver", (Receiver,), {"wake": wake, "secret": secret})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise ListenFailed(f"cannot listen on port {port} of {HOST} ({error}): choose another with --port") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sync_when_woken(
    sync: Callable[[], None], wake: threading.Event, every_seconds: float, stop: threading.Event | None = None
) -> None:
    """Sync now, whenever `wake` is set, and at least every `every_seconds`, until `stop` is set.

    Webhooks within a second trigger one sync; webhooks during a sync trigger another.
    """
    while True:
        wake.clear()
        sync()
        if wake.wait(every_seconds):
            time.sleep(SETTLE_SECONDS)
        if stop is not None and stop.is_set():
            return
