"""Start commands of the parts of a stack: command line, environment, working directory.

`deploy/` runs the same commands with the same variables in containers; a test compares the two.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from flows.prefect_configuration import NO_CONFIGURATION
from flows.stack import postgres
from flows.stack.processes import StackError
from flows.stack.proxies import direct_loopback
from flows.stack.services import (
    LABEL_STUDIO,
    NO_NETRC,
    POOLS,
    QUIET,
    SAFE_PATH,
    Name,
    Site,
    is_loopback,
    label_studio_executable,
)
from labeling.child_environment import Child, child_environment
from labeling.server import gunicorn
from labeling.server import process as label_studio

CONFIGURATION_FILES = ("prefect.toml", "pyproject.toml", ".env")  # which Prefect reads in its working directory


@dataclass(frozen=True)
class Launch:
    """Everything needed to start a server. `switches` are variables to set, `leaky` prefixes of variables that it must
    not inherit because they could point to another stack's data."""

    command: tuple[str, ...]
    switches: dict[str, str] = field(repr=False)
    directory: Path
    leaky: tuple[str, ...] = ()
    user: str | None = None
    child: Child = "program"

    @property
    def environment(self) -> dict[str, str]:
        """The complete environment: what a child of this kind gets, without leaky variables and without a proxy to this
        machine, and the switches."""
        passed = child_environment(self.child, os.environ)
        inherited = {name: value for name, value in passed.items() if not name.startswith(self.leaky)}
        return inherited | NO_NETRC | direct_loopback(os.environ) | self.switches


def launch_of(name: Name, site: Site) -> Launch:
    """The start command of a part of a stack. Raises StackError when its program is not installed."""
    if name == "postgres":
        return _postgres(site)
    if name == "prefect":
        return prefect_launch(site)
    if name == "mlflow":
        return mlflow_launch(site)
    if name == "label-studio":
        return _label_studio(site)
    return worker_launch(name, site)


def _postgres(site: Site) -> Launch:
    programs, user = postgres.programs(), postgres.account()
    data = postgres.data_directory(site.home)
    where = (
        "-D",
        str(data),
        "-c",
        f"listen_addresses={site.addresses['postgres'].rpartition(':')[0]}",
        "-c",
        f"port={site.port('postgres')}",
        "-c",
        "unix_socket_directories=",
    )
    command = (str(programs / "postgres"), *where, *postgres.OPTIONS)
    return Launch(command=command, switches={}, directory=data, leaky=("PG", "RLHF_"), user=user)


def prefect_launch(site: Site) -> Launch:
    """Prefect's server behind its password, only for known host names; in production on PostgreSQL."""
    data = site.home / "prefect"
    switches = {
        **QUIET,
        **NO_CONFIGURATION,
        **SAFE_PATH,
        "PREFECT_HOME": str(data),
        "PREFECT_SERVER_UI_API_URL": "/api",  # the pages call the host that served them, on any port
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(data / "pages"),  # else it writes into the installed package
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the V2 pages call an analytics host from the browser
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_API_AUTH_STRING": site.prefect_auth,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": site.url("prefect"),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    if site.profile == "production":
        secrets = site.credentials.secrets
        switches |= {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url("asyncpg", "prefect", site.addresses["postgres"]),
            "PGPASSWORD": secrets.prefect_database_password,
        }
    where = ("--host", site.bind, "--port", str(site.port("prefect")))
    allowed = ("--allowed-hosts", ",".join(site.hosts("prefect")))
    command = (sys.executable, "-m", "flows.stack.prefect_server", *where, *allowed)
    return Launch(command=command, switches=switches, directory=data, leaky=("PREFECT_", "PYTHONPATH", "PG"))


def mlflow_launch(site: Site) -> Launch:
    """MLflow's server, only for known host names; in production on PostgreSQL and with a password.

    Without --allowed-hosts MLflow accepts every name that begins like a private address, such as 10.example.org.
    """
    data = site.home / "mlflow"
    switches = {
        **QUIET,
        **SAFE_PATH,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else 15 processes and 3 GB
    }
    command: tuple[str, ...] = (
        *(sys.executable, "-m", "mlflow", "server", "--host", site.bind, "--port", str(site.port("mlflow"))),
        *("--workers", "1", "--artifacts-destination", site.artifacts or (data / "artifacts").as_uri()),
        *("--allowed-hosts", ",".join(site.hosts("mlflow"))),
    )
    if site.profile == "default":
        command += ("--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}")
    else:
        secrets = site.credentials.secrets
        command += ("--app-name", "basic-auth")
        switches |= {
            "MLFLOW_BACKEND_STORE_URI": postgres.url("psycopg", "mlflow", site.addresses["postgres"]),
            "PGPASSWORD": secrets.mlflow_database_password,
            "MLFLOW_AUTH_CONFIG_PATH": str(data / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": secrets.mlflow_username,
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.mlflow_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.mlflow_secret_key,
        }
    leaky = ("MLFLOW_", "PYTHONPATH", "PG")
    return Launch(command=command, switches=switches, directory=data, leaky=leaky, child="artifact-server")


def mlflow_accounts(site: Site) -> str:
    """MLflow's configuration of accounts: users other than the administrator have no permissions by default."""
    database = postgres.url("psycopg", "mlflow", site.addresses["postgres"])
    return f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database}\nauth_cache_ttl_seconds = 60\n"


def label_studio_settings(site: Site, executable: Path) -> label_studio.ServerSettings:
    """Settings of Label Studio in the environment of `executable`."""
    credentials = site.credentials
    local = not site.public_url and is_loopback(site.bind)
    return label_studio.ServerSettings(
        executable=executable,
        data_dir=site.home / "label-studio",
        port=site.port("label-studio"),
        host=site.bind,
        public_url=site.public_url or site.url("label-studio"),
        page_host=label_studio.page_host(credentials.label_studio_secret_key) if local else "",
        username=credentials.label_studio_email,
        password=SecretStr(credentials.label_studio_password),
        token=SecretStr(credentials.label_studio_token),
        secret_key=SecretStr(credentials.label_studio_secret_key),
        local_webhooks=os.environ.get("RLHF_LABEL_STUDIO_LOCAL_WEBHOOKS") == "1",
    )


def label_studio_launch(site: Site, settings: label_studio.ServerSettings, configuration: Path) -> Launch:
    """Label Studio; in production on PostgreSQL under gunicorn with this project's `configuration`."""
    command, switches = label_studio.command(settings), label_studio.switches(settings)
    if site.profile == "production":
        host, _, port = site.addresses["postgres"].rpartition(":")
        password = site.credentials.secrets.label_studio_database_password
        command = gunicorn.command(settings, configuration)
        switches |= gunicorn.switches(settings, host, port, postgres.DATABASES["label-studio"], password)
    return Launch(
        command=tuple(command), switches=switches, directory=settings.working_dir, leaky=label_studio.EXCLUDED_PREFIXES
    )


def _label_studio(site: Site) -> Launch:
    return label_studio_launch(site, label_studio_settings(site, label_studio_executable()), gunicorn.CONFIGURATION)


def worker_launch(name: Name, site: Site) -> Launch:
    """A worker that starts runs of our flows in its pool as processes; a missing pool is created."""
    pool = POOLS[name]
    elsewhere = {variable: os.environ.get(variable, "") for variable in LABEL_STUDIO}
    switches = site.client_environment() | (elsewhere if all(elsewhere.values()) else {})
    switches |= {
        **SAFE_PATH,
        "PREFECT_WORKER_WEBSERVER_HOST": site.addresses[name].rpartition(":")[0],
        "PREFECT_WORKER_WEBSERVER_PORT": str(site.port(name)),
    }
    command = (sys.executable, "-m", "flows.deployments.worker", "--pool", pool, "--name", name)
    leaky = ("PREFECT_", "MLFLOW_", "LABEL_STUDIO_", "PG")
    return Launch(command=command, switches=switches, directory=site.home / name, leaky=leaky, child="worker")


def prepare(name: Name, site: Site) -> None:
    """Create the files that a part needs before it starts. Raises StackError and ServerStartFailed."""
    if name == "postgres":
        postgres.create_cluster(site.home, site.credentials.secrets.postgres_password)
        return
    (site.home / name).mkdir(parents=True, exist_ok=True)
    check_configuration(site.home / name)
    (site.home / name).chmod(0o700)  # databases of the servers contain tokens, whatever the mode of the home
    if name == "mlflow" and site.profile == "production":
        (site.home / name / "basic_auth.ini").write_text(mlflow_accounts(site), encoding="utf-8")
    if name == "label-studio":
        sqlite = site.profile == "default"
        label_studio.prepare(label_studio_settings(site, label_studio_executable()), sqlite=sqlite)


def check_configuration(directory: Path) -> None:
    """Raise StackError for files in the working directory of a part that Prefect reads as its configuration: this
    project writes none, but a backup of others may contain them, and they name code to run."""
    for name in CONFIGURATION_FILES:
        if os.path.lexists(directory / name):
            raise StackError(
                f"{directory / name} would configure the server that starts there, and this project writes no such "
                "file: read it, move it away, and set the variables of Prefect instead"
            )
