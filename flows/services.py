"""The three servers of the local stack: how each is started, and how to tell that it works.

Nothing phones home: the switches that turn telemetry off are here, for servers and clients alike.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from flows.processes import StackError
from labeling import server as label_studio
from labeling.errors import BadCredentials

HOST = "127.0.0.1"
PROBE_SECONDS = 5.0
Name = Literal["prefect", "mlflow", "label-studio"]
NAMES: tuple[Name, ...] = ("prefect", "mlflow", "label-studio")
TITLES: Mapping[Name, str] = {"prefect": "Prefect", "mlflow": "MLflow", "label-studio": "Label Studio"}
DEFAULT_PORTS: Mapping[Name, int] = {"prefect": 4200, "mlflow": 5000, "label-studio": 8080}
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Credentials(BaseModel):
    """The accounts of a stack, generated once and kept in a file that only its owner can read."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    label_studio_email: str
    label_studio_password: str = Field(repr=False)
    label_studio_token: str = Field(repr=False)
    label_studio_secret_key: str = Field(repr=False)


class Health(BaseModel):
    """What a server answered: `version` when it works, else `problem` in words."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    version: str = ""
    problem: str = ""


class Launch(BaseModel):
    """Everything needed to start one server."""

    model_config = ConfigDict(frozen=True)

    command: tuple[str, ...]
    environment: dict[str, str] = Field(repr=False)
    directory: Path


def port_variable(name: Name) -> str:
    """The environment variable that fixes a server's port."""
    return f"RLHF_{name.replace('-', '_').upper()}_PORT"


def launch_of(name: Name, home: Path, port: int, credentials: Credentials) -> Launch:
    """How to start a server. Raises StackError when its program is not installed."""
    data = home / name
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)  # databases of the servers hold tokens, whatever the mode of the home around them
    if name == "prefect":
        return _prefect(data, port)
    if name == "mlflow":
        return _mlflow(data, port)
    return _label_studio(data, port, credentials)


def _prefect(data: Path, port: int) -> Launch:
    switches = {
        "PREFECT_HOME": str(data),
        "PREFECT_PROFILES_PATH": str(data / "profiles.toml"),
        "PREFECT_SERVER_UI_API_URL": "/api",  # the pages ask the host they came from, whatever the port
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the V2 pages ask an analytics host from the browser
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))
    return Launch(command=command, environment=_clean("PREFECT_") | QUIET | switches, directory=data)


def _mlflow(data: Path, port: int) -> Launch:
    artifacts = data / "artifacts"
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}", "--artifacts-destination", artifacts.as_uri()),
    )
    switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else 15 processes and 3 GB
    return Launch(command=command, environment=_clean("MLFLOW_") | QUIET | switches, directory=data)


def _label_studio(data: Path, port: int, credentials: Credentials) -> Launch:
    settings = label_studio.ServerSettings(
        executable=label_studio_executable(),
        data_dir=data,
        port=port,
        host=HOST,
        username=credentials.label_studio_email,
        password=SecretStr(credentials.label_studio_password),
        token=SecretStr(credentials.label_studio_token),
        secret_key=SecretStr(credentials.label_studio_secret_key),
        local_webhooks=os.environ.get("RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS") == "1",
    )
    label_studio.prepare(settings)
    return Launch(
        command=tuple(label_studio.command(settings)),
        environment=label_studio.environment(settings),
        directory=settings.working_dir,
    )


def label_studio_executable() -> Path:
    """Label Studio's program in its own environment: RLHF_LABEL_STUDIO, or beside the environment that runs this."""
    given = os.environ.get("RLHF_LABEL_STUDIO")
    path = Path(given) if given else Path(sys.prefix).parent / ".venv-label-studio" / "bin" / "label-studio"
    if not path.is_file():
        raise StackError(
            f"Label Studio is not installed at {path}; `make setup` installs it, "
            "or set RLHF_LABEL_STUDIO to a label-studio program of version 1.23"
        )
    return path


def _clean(prefix: str) -> dict[str, str]:
    """Our environment without settings that would lead a server to somebody else's data."""
    return {name: value for name, value in os.environ.items() if not name.startswith((prefix, "PYTHONPATH"))}


def health_of(name: Name, url: str, token: str) -> Health:
    """Ask a server, its database included, whether it works."""
    try:
        with httpx.Client(
            base_url=url, timeout=PROBE_SECONDS, trust_env=False, verify=label_studio.authorities()
        ) as http:
            if name == "prefect":
                return _prefect_health(http)
            if name == "mlflow":
                return _mlflow_health(http)
            return _label_studio_health(http, url, token)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Health(ok=False, problem=str(error) or type(error).__name__)


def _prefect_health(http: httpx.Client) -> Health:
    for path in ("/api/health", "/api/ready"):
        answer = http.get(path)
        if answer.status_code != 200:
            return Health(ok=False, problem=f"{path} answers {answer.status_code}")
    return Health(ok=True, version=str(http.get("/api/admin/version").raise_for_status().json()))


def _mlflow_health(http: httpx.Client) -> Health:
    answers = {
        "/health": http.get("/health"),
        "the search for experiments": http.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}),
    }
    for path, answer in answers.items():
        if answer.status_code != 200:
            return Health(ok=False, problem=f"{path} answers {answer.status_code}")
    return Health(ok=True, version=http.get("/version").raise_for_status().text.strip())


def _label_studio_health(http: httpx.Client, url: str, token: str) -> Health:
    try:
        ready, seen = label_studio.is_ready(url, token, PROBE_SECONDS)
    except BadCredentials as error:
        return Health(ok=False, problem=str(error))
    if not ready:
        return Health(ok=False, problem=seen)
    return Health(ok=True, version=str(http.get("/api/version").raise_for_status().json()["release"]))
