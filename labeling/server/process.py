"""Start, await and stop a Label Studio server, which has its own Python environment.

`command` and `environment` define how to run it, for a process supervisor; `running_server` runs it for the duration of
a `with` block.
"""

import errno
import hashlib
import hmac
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from labeling.child_environment import child_environment
from labeling.errors import BadCredentials, ServerStartFailed, ServerUnavailable

POLL_SECONDS = 0.2
STOP_SECONDS = 10.0
LOG_TAIL_CHARACTERS = 2000
GUARD, GUARD_SETTINGS = Path(__file__).with_name("guard"), "rlhf_settings"
EXCLUDED_PREFIXES = ("PYTHON", "LABEL_STUDIO_", "DJANGO_", "POSTGRE_", "VIRTUAL_ENV", "SENTRY_", "PG")


class ServerSettings(BaseModel):
    """Paths of the server's executable and data, and the first account, which is created on the first start only."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    executable: Path
    data_dir: Path
    port: int = Field(ge=1, le=65535)
    host: str = "127.0.0.1"
    public_url: str = Field(default="", description="public URL; host and port if empty")
    page_host: str = Field(default="", description="the only host name under which browsers get pages; any if empty")
    username: str = "owner@rlhf.local"
    password: SecretStr = Field(min_length=8)
    token: SecretStr
    secret_key: SecretStr | None = None
    task_lock_seconds: int = Field(default=1800, ge=1)
    local_webhooks: bool = Field(default=False, description="allow webhooks to addresses of the server's own machine")

    @field_validator("token")
    @classmethod
    def _token_is_forty_hex_digits(cls, token: SecretStr) -> SecretStr:
        text = token.get_secret_value()
        if len(text) != 40 or any(c not in "0123456789abcdef" for c in text):
            raise ValueError("a Label Studio token is 40 lower-case hexadecimal digits")
        return token

    @property
    def url(self) -> str:
        """The address of the server, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def log_path(self) -> Path:
        """The file that gets the server's output."""
        return self.data_dir / "server.log"

    @property
    def working_dir(self) -> Path:
        """An empty directory: the server puts it on `sys.path` and would import a stray `core.py` from it."""
        return self.data_dir / "cwd"


def page_host(secret_key: str) -> str:
    """The host name of a local server's pages, which browsers resolve to this machine and nobody else knows.

    Cookies go to every port of a host, and programs of others can listen on other ports: they do not know this one.
    """
    return f"labels-{hmac.new(secret_key.encode(), b'page host', hashlib.sha256).hexdigest()[:16]}.localhost"


def pages_link(settings: ServerSettings) -> str:
    """The link that opens the pages; at the same origin the browser remembers their host name for all other links."""
    name = settings.page_host.partition(".")[0]
    return f"{settings.url}/#{name}" if name else settings.public_url or settings.url


def command(settings: ServerSettings) -> list[str]:
    """The command line that starts the server in the foreground.

    Secrets are passed in `environment`, which other users of this machine cannot read. Label Studio runs with the
    settings in `GUARD`: annotators do not administer, and it connects to no address of its machine and network.
    """
    return [
        "env",
        f"PYTHONPATH={GUARD}",
        f"DJANGO_SETTINGS_MODULE={GUARD_SETTINGS}",
        str(settings.executable),
        "start",
        "--no-browser",
        "--log-level",
        "WARNING",
        "--internal-host",
        settings.host,
        "--port",
        str(settings.port),
        "--data-dir",
        str(settings.data_dir),
        "--enable-legacy-api-token",
    ]


def environment(settings: ServerSettings) -> dict[str, str]:
    """The server's environment: what a program gets of this process's, without `EXCLUDED_PREFIXES`, plus `switches`.

    Sign-up needs an invitation, and no other host is contacted: no analytics, version checks or error reports.
    """
    passed = child_environment("program", os.environ)
    return {name: value for name, value in passed.items() if not name.startswith(EXCLUDED_PREFIXES)} | switches(
        settings
    )


def switches(settings: ServerSettings) -> dict[str, str]:
    """The variables that are set for the server."""
    public_url = settings.public_url or settings.url
    secret = {} if settings.secret_key is None else {"SECRET_KEY": settings.secret_key.get_secret_value()}
    if settings.page_host:  # pages call the host that served them, and those for programs do not contain its name
        secret |= {"RLHF_PAGE_HOST": f"{settings.page_host}:{settings.port}"}
    return secret | {
        "LABEL_STUDIO_USERNAME": settings.username,
        "LABEL_STUDIO_PASSWORD": settings.password.get_secret_value(),
        "LABEL_STUDIO_USER_TOKEN": settings.token.get_secret_value(),
        "LABEL_STUDIO_HOST": "" if settings.page_host else public_url,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_FEATURE_FLAGS_OFFLINE": "true",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": str(not settings.local_webhooks).lower(),
        "LABEL_STUDIO_TASK_LOCK_TTL": str(settings.task_lock_seconds),
        "CORS_ALLOWED_ORIGINS": public_url,
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "PYTHONUNBUFFERED": "1",
    }


def prepare(settings: ServerSettings, *, sqlite: bool = True) -> None:
    """Create the directories and, with `sqlite`, the database file; check what would fail late or silently.

    Label Studio would take the next free port, so a port in use is an error here.
    """
    if not settings.executable.is_file():
        raise ServerStartFailed(f"no Label Studio at {settings.executable}: install it in an environment of its own")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    settings.working_dir.mkdir(exist_ok=True)
    if any(settings.working_dir.iterdir()):
        raise ServerStartFailed(f"{settings.working_dir} must be empty: the server would import modules from it")
    if sqlite:
        _use_write_ahead_log(settings.data_dir / "label_studio.sqlite3")
    _check_port(socket.AF_INET, settings.host, settings.port)
    if settings.page_host and socket.has_ipv6:  # browsers look for the name there as well
        _check_port(socket.AF_INET6, "::1", settings.port)


def _check_port(family: socket.AddressFamily, host: str, port: int) -> None:
    """Raise ServerStartFailed if a port is in use."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and family == socket.AF_INET6:
                return
            raise ServerStartFailed(f"port {port} of {host} is in use ({error})") from error


def _use_write_ahead_log(database: Path) -> None:
    """Set the SQLite database to WAL mode (persistent): readers do not block, and a submit is a third faster."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def start(settings: ServerSettings) -> subprocess.Popen[bytes]:
    """Start the server in its own process group, with output to `settings.log_path`; return without waiting."""
    prepare(settings)
    with settings.log_path.open("ab") as log:
        return subprocess.Popen(
            command(settings),
            env=environment(settings),
            cwd=settings.working_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> None:
    """Stop the server and all its children: SIGTERM, and after `seconds` SIGKILL."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@cache
def authorities() -> ssl.SSLContext:
    """The TLS context of trusted certificate authorities, cached: loading takes 30 ms, and readiness is polled."""
    return httpx.create_ssl_context(trust_env=False)


def is_ready(url: str, token: str, timeout_seconds: float = 5.0) -> tuple[bool, str]:
    """Check once: (True, "") if the server runs and accepts the token, else (False, the problem).

    `/health` is static, so the account is requested as well. Raises BadCredentials for a refused token.
    """
    try:
        with httpx.Client(base_url=url, timeout=timeout_seconds, trust_env=False, verify=authorities()) as http:
            health = http.get("/health")
            if health.status_code != 200:
                return False, f"/health answers {health.status_code}"
            who = http.get("/api/current-user/whoami", headers={"Authorization": f"Token {token}"})
    except httpx.HTTPError as error:
        return False, str(error) or type(error).__name__
    if who.status_code in (401, 403):
        raise BadCredentials(url, "the owner")
    return who.status_code == 200, f"whoami answers {who.status_code}"


def wait_until_ready(
    url: str, token: str, timeout_seconds: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until the server responds with the account of `token`.

    Raises ServerUnavailable after `timeout_seconds`, ServerStartFailed as soon as `process` has ended, and
    BadCredentials if the server refuses the token.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        ready, problem = is_ready(url, token)
        if ready:
            return
        if process is not None and process.poll() is not None:
            raise ServerStartFailed(f"the server exited with code {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise ServerUnavailable(url, f"not ready after {timeout_seconds:.0f} s: {problem}")
        time.sleep(POLL_SECONDS)


@contextmanager
def running_server(settings: ServerSettings, timeout_seconds: float = 180.0) -> Iterator[str]:
    """Run a server for the duration of the block; yields its URL. A start error includes the end of the log."""
    process = start(settings)
    try:
        try:
            wait_until_ready(settings.url, settings.token.get_secret_value(), timeout_seconds, process)
        except (ServerStartFailed, ServerUnavailable) as error:
            tail = settings.log_path.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
            raise ServerStartFailed(f"{error}\nThe end of {settings.log_path}:\n{tail}") from error
        yield settings.url
    finally:
        stop(process)
