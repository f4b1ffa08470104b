"""Health checks of the parts of a stack, and of servers elsewhere, which are asked as the work asks them: Prefect and
MLflow with the proxies of the environment, Label Studio without."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from flows.stack import postgres
from flows.stack.services import Name, Secrets, Site
from labeling.errors import BadCredentials
from labeling.server import process as label_studio

PROBE_SECONDS = 5.0
ADDRESSES: Mapping[Name, str] = {
    "prefect": "PREFECT_API_URL",
    "mlflow": "MLFLOW_TRACKING_URI",
    "label-studio": "LABEL_STUDIO_URL",
}  # the variables that name the servers


@dataclass(frozen=True)
class Health:
    """The result of a health check: `version` when healthy, else the `problem`."""

    ok: bool
    version: str = ""
    problem: str = ""


def health_of(name: Name, site: Site) -> Health:
    """Check the health of a part of the stack, including the database behind it."""
    if name == "postgres":
        problem, version = postgres.probe(site.addresses[name], site.credentials.secrets.postgres_password)
        return Health(ok=not problem, version=version, problem=problem)
    secrets = site.credentials.production if site.profile == "production" else None
    try:
        with httpx.Client(base_url=site.url(name), timeout=PROBE_SECONDS, verify=label_studio.authorities()) as http:
            if name == "prefect":
                return _prefect_health(http, secrets)
            if name == "mlflow":
                return _mlflow_health(http, secrets)
            if name == "label-studio":
                return _label_studio_health(http, site.url(name), site.credentials.label_studio_token)
            return _worker_health(http)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Health(ok=False, problem=str(error) or type(error).__name__)


def health_elsewhere(name: Name, environment: Mapping[str, str] = os.environ) -> Health:
    """Check a server that the environment names. Any status below 500 is an answer: gateways may lack `/health`."""
    url = environment[ADDRESSES[name]].rstrip("/")
    if not url.startswith("http"):
        return Health(ok=name == "mlflow", version="a file", problem="it is no address: it must start with http")
    try:
        if name == "label-studio":
            ready, problem = label_studio.is_ready(url, environment.get("LABEL_STUDIO_API_KEY", ""), PROBE_SECONDS)
            return Health(ok=ready, problem=problem)
        response = httpx.get(f"{url}/health", timeout=PROBE_SECONDS, verify=label_studio.authorities())
    except (httpx.HTTPError, httpx.InvalidURL, BadCredentials) as error:
        return Health(ok=False, problem=str(error) or type(error).__name__)
    return Health(ok=response.status_code < 500, problem=f"/health answers {response.status_code}")


def _prefect_health(http: httpx.Client, secrets: Secrets | None) -> Health:
    if secrets is not None:
        http.auth = httpx.BasicAuth(*secrets.prefect_auth.split(":", 1))
    for path in ("/api/health", "/api/ready"):
        response = http.get(path)
        if response.status_code != 200:
            return Health(ok=False, problem=f"{path} answers {response.status_code}")
    return Health(ok=True, version=str(http.get("/api/admin/version").raise_for_status().json()))


def _mlflow_health(http: httpx.Client, secrets: Secrets | None) -> Health:
    if secrets is not None:
        http.auth = httpx.BasicAuth(secrets.mlflow_username, secrets.mlflow_password)
    responses = {
        "/health": http.get("/health"),
        "the search for experiments": http.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}),
    }
    for path, response in responses.items():
        if response.status_code != 200:
            return Health(ok=False, problem=f"{path} answers {response.status_code}")
    return Health(ok=True, version=http.get("/version").raise_for_status().text.strip())


def _label_studio_health(http: httpx.Client, url: str, token: str) -> Health:
    try:
        ready, seen = label_studio.is_ready(url, token, PROBE_SECONDS)
    except BadCredentials as error:
        return Health(ok=False, problem=str(error))
    if not ready:
        return Health(ok=False, problem=seen)
    return Health(ok=True, version=str(http.get("/api/version").raise_for_status().json()["release"]))


def _worker_health(http: httpx.Client) -> Health:
    """A worker's own health check: healthy while it keeps polling Prefect for work."""
    response = http.get("/health")
    return Health(
        ok=response.status_code == 200, problem=f"/health answers {response.status_code}: {response.text[:200]}"
    )
