"""Servers that can be killed, frozen and restarted, and a proxy whose connections can be cut."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from flows.stack import processes, services
from flows.stack.health import health_of
from flows.stack.processes import Process
from flows.stack.services import Credentials, Name
from tests.flows.local import launch_of, site_of
from tests.labeling.helpers import free_port

NOBODY = Credentials(
    label_studio_email="",
    label_studio_password="",
    label_studio_token="",
    label_studio_secret_key="",
    prefect_auth="rlhf:nobody",
)


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait for a condition, however slow the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)


class Server:
    """An MLflow or Prefect server of a test's own, as the local stack starts it."""

    def __init__(self, name: Name, home: Path) -> None:
        self._name, self._home, self._port = name, home, free_port()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Its address, the same after each start."""
        return f"http://{services.HOST}:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        launch = launch_of(self._name, self._home, self._port, NOBODY)
        self._process = processes.launch(
            launch.command, environment=launch.environment, directory=launch.directory, log=self._home / "log"
        )
        until(lambda: health_of(self._name, site_of(self._home, {self._name: self._port}, NOBODY)).ok)

    def send(self, sign: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        assert self._process is not None
        for one in processes.members(self._process):
            one.send_signal(sign)

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        group = processes.members(self._process)
        self.send(signal.SIGKILL)
        psutil.wait_procs(group, timeout=60)

    def start_later(self, seconds: float) -> threading.Thread:
        """Start it from another thread after a while."""

        def work() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


class Wire:
    """A wire before a server: `cut` refuses connections until `mend`, and `lose` makes it swallow one answer first."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._server = (str(place.hostname), int(place.port or 80))
        self._address = ("127.0.0.1", free_port())
        self._listener: socket.socket | None = None
        self.losing: list[tuple[str, float]] = []  # the start of a request and for how long the wire is cut then
        self.lost: list[str] = []

    @property
    def url(self) -> str:
        """Where a client connects."""
        return f"http://{self._address[0]}:{self._address[1]}"

    def mend(self) -> None:
        """Let connections through."""
        listener = socket.create_server(self._address)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self, seconds: float | None = None) -> None:
        """Refuse connections, for some seconds or until `mend`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # wakes up who accepts
            listener.close()
            if seconds is not None:
                threading.Timer(seconds, self.mend).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One request there and its answer back; clients of Label Studio keep no connection."""
        with client, socket.create_connection(self._server) as server:
            begin = client.recv(65536)
            server.sendall(begin)
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            line = begin.split(b"\r\n", 1)[0].decode(errors="replace")
            fault = next((one for one in self.losing if line.startswith(one[0])), None)
            if fault is None:
                _copy(server, client)
                return
            self.losing.remove(fault)
            server.recv(65536)  # the server has done the work, and nobody hears of it
            self.lost.append(line)
            self.cut(fault[1])
            client.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return


@contextmanager
def wire(url: str) -> Iterator[Wire]:
    """A wire to a server."""
    made = Wire(url)
    made.mend()
    try:
        yield made
    finally:
        made.cut()
