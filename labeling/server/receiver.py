"""A receiver of webhooks: whatever Label Studio says wakes a sync, and nothing that it says is believed.

Webhooks are never repeated, and one that is lost would be missed for ever; so a sync also runs after a while by itself.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from labeling.errors import ListenFailed

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
LONGEST = 1_000_000  # bytes of a message
READ_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # a submit comes with several messages


def action_of(body: bytes) -> str:
    """The action that a webhook names, "" for what is no message of Label Studio's."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    action = told.get("action") if isinstance(told, dict) else None
    return action if isinstance(action, str) and action.isascii() and action.replace("_", "").isalpha() else ""


class Receiver(BaseHTTPRequestHandler):
    """Answers at once, since the annotator's submit waits for the answer; `wake` is what a good message sets."""

    wake: threading.Event
    timeout = READ_SECONDS

    def do_POST(self) -> None:
        """Take a message."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            log.warning("ignored a message of %s bytes from %s", length or "unknown many", self.client_address[0])
            self._answer(413 if length.isdecimal() else 411)
            return
        action = action_of(self.rfile.read(int(length)))
        if action:
            self.wake.set()
        else:
            log.warning("ignored a message that names no action, from %s", self.client_address[0])
        self._answer(204 if action else 400)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Every request at the level of debugging, and not on the terminal."""
        log.debug(format, *args)


@contextmanager
def webhook_receiver(port: int, wake: threading.Event) -> Iterator[str]:
    """Receive on loopback while the block runs; yields the address. Port 0 takes a free one.

    Raises ListenFailed when the port is taken.
    """
    handler = type("WakingReceiver", (Receiver,), {"wake": wake})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise ListenFailed(f"port {port} of {HOST} is not to be had ({error}): name another with --port") from error
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
    """Sync now, whenever woken, and at the latest after `every_seconds`; until `stop`, else for ever.

    Messages that come within a second are one; those that come while a sync runs bring another one.
    """
    while True:
        wake.clear()
        sync()
        if wake.wait(every_seconds):
            time.sleep(SETTLE_SECONDS)
        if stop is not None and stop.is_set():
            return
