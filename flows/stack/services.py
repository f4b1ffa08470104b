"""The parts of a stack: three servers, a database in production, workers; their addresses and accounts.

Telemetry is switched off here, for servers and clients alike.
"""

import os
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from alignment.records import Record
from flows.prefect_configuration import NO_CONFIGURATION
from flows.stack import outages
from flows.stack.listeners import own_servers
from flows.stack.processes import StackError

HOST = "127.0.0.1"
Name = Literal["postgres", "prefect", "mlflow", "label-studio", "train-worker", "ops-worker"]
Profile = Literal["default", "production"]
NAMES: tuple[Name, ...] = ("prefect", "mlflow", "label-studio")
POOLS: Mapping[Name, str] = {"train-worker": "train", "ops-worker": "ops"}
WAVES: tuple[tuple[Name, ...], ...] = (("postgres",), NAMES, tuple(POOLS))  # each depends on those before it
TITLES: Mapping[Name, str] = {
    "postgres": "PostgreSQL",
    "prefect": "Prefect",
    "mlflow": "MLflow",
    "label-studio": "Label Studio",
    "train-worker": "worker of pool train",
    "ops-worker": "worker of pool ops",
}
DEFAULT_PORTS: Mapping[Name, int] = {
    "postgres": 5432,
    "prefect": 4200,
    "mlflow": 5000,
    "label-studio": 8080,
    "train-worker": 4280,
    "ops-worker": 4281,
}
LABEL_STUDIO = ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY")
NO_TEMPORARY_SERVER = {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}  # its answers look like those of an empty stack
NO_NETRC = {"NETRC": os.devnull}  # else a `default` entry of ~/.netrc replaces the password of MLflow
SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # no module is imported from the working directory
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Secrets(Record):
    """The passwords of a production stack."""

    model_config = ConfigDict(hide_input_in_errors=True)

    postgres_password: str = Field(repr=False)
    prefect_database_password: str = Field(repr=False)
    mlflow_database_password: str = Field(repr=False)
    label_studio_database_password: str = Field(repr=False)
    prefect_auth: str = Field(repr=False, description="USER:PASSWORD of Prefect's pages and API")
    mlflow_username: str
    mlflow_password: str = Field(repr=False)
    mlflow_secret_key: str = Field(repr=False)

    @property
    def databases(self) -> dict[str, str]:
        """The passwords of the servers' roles in PostgreSQL."""
        return {
            "prefect": self.prefect_database_password,
            "mlflow": self.mlflow_database_password,
            "label-studio": self.label_studio_database_password,
        }


class Credentials(Record):
    """The accounts of a stack, generated once and stored in a file that only its owner can read."""

    model_config = ConfigDict(hide_input_in_errors=True)

    label_studio_email: str
    label_studio_password: str = Field(repr=False)
    label_studio_token: str = Field(repr=False)
    label_studio_secret_key: str = Field(repr=False)
    prefect_auth: str = Field("", repr=False, description="USER:PASSWORD of Prefect, in a stack without `production`")
    production: Secrets | None = None

    @property
    def secrets(self) -> Secrets:
        """The passwords of a production stack. Raises StackError where there are none."""
        if self.production is None:
            raise StackError(
                "these credentials belong to a stack without passwords; `rlhf up --profile production` "
                "creates one with passwords, in a separate home"
            )
        return self.production


class Site(Record):
    """Addresses (host:port), accounts and settings of a stack's parts."""

    home: Path
    credentials: Credentials
    addresses: dict[Name, str]
    profile: Profile = "default"
    bind: str = HOST
    public_url: str = Field(default="", description="Label Studio's public address, behind a proxy")
    artifacts: str = Field(default="", description="where MLflow stores artifacts; default: its own directory")
    allowed_hosts: tuple[str, ...] = Field(default=(), description="further host names of Prefect and MLflow")

    def url(self, name: Name) -> str:
        """A server's address without a trailing slash; "" for a server that was never started."""
        return f"http://{self.addresses[name]}" if name in self.addresses else ""

    def port(self, name: Name) -> int:
        """A part's port."""
        return int(self.addresses[name].rpartition(":")[2])

    @property
    def prefect_auth(self) -> str:
        """USER:PASSWORD of Prefect; "" for a stack that was started before it had one."""
        production = self.credentials.production
        return self.credentials.prefect_auth if production is None else production.prefect_auth

    def hosts(self, name: Name) -> tuple[str, ...]:
        """The Host headers that a server accepts, * for any port."""
        return (self.addresses[name], "localhost:*", "127.0.0.1:*", *self.allowed_hosts)

    def client_environment(self) -> dict[str, str]:
        """Environment variables with the servers' addresses and logins; set them before importing Prefect or MLflow."""
        variables = {
            **QUIET,
            **NO_TEMPORARY_SERVER,
            **NO_CONFIGURATION,
            **own_servers(address for name, address in self.addresses.items() if name in NAMES),
            "RLHF_HOME": str(self.home),
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_REGISTRY_URI": self.url("mlflow"),
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            **outages.retries(),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,alignment,labeling",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # distinguishes killed runs from live ones
            "LABEL_STUDIO_URL": self.url("label-studio"),
            "LABEL_STUDIO_API_KEY": self.credentials.label_studio_token,
        }
        if self.prefect_auth:
            variables["PREFECT_API_AUTH_STRING"] = self.prefect_auth
        if self.profile == "production":
            secrets = self.credentials.secrets
            variables |= {
                "MLFLOW_TRACKING_USERNAME": secrets.mlflow_username,
                "MLFLOW_TRACKING_PASSWORD": secrets.mlflow_password,
            }
        return variables


def port_variable(name: Name) -> str:
    """The environment variable for a server's port."""
    return f"RLHF_{name.replace('-', '_').upper()}_PORT"


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable only from this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def log_in_as(name: Name, profile: Profile, known: Credentials | None) -> str:
    """The account for a server's pages, or "no login"."""
    if known is not None and name == "label-studio":
        return known.label_studio_email
    if known is None or name in POOLS or (profile == "default" and name == "mlflow"):
        return "no login"
    if name == "prefect":
        return (known.prefect_auth if known.production is None else known.production.prefect_auth).partition(":")[0]
    return "postgres" if name == "postgres" else known.secrets.mlflow_username


def label_studio_executable() -> Path:
    """Label Studio's program in its own environment: RLHF_LABEL_STUDIO, or next to the current environment."""
    configured = os.environ.get("RLHF_LABEL_STUDIO")
    path = Path(configured) if configured else Path(sys.prefix).parent / ".venv-label-studio" / "bin" / "label-studio"
    if not path.is_file():
        raise StackError(
            f"Label Studio is not installed at {path}; `make setup` installs it, "
            "or set RLHF_LABEL_STUDIO to a label-studio program of version 1.23"
        )
    return path
