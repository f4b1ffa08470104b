"""Health checks of the parts of a stack, and of servers elsewhere, which are asked as the work asks them: Prefect and
MLflow with the proxies of the environment, Label Studio without."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from flows.recipe.credentials import redacted, shown_address
from flows.stack import postgres
from flows.stack.processes import StackError
from flows.stack.services import Name, Secrets, Site
from labeling.errors import BadCredentials
from labeling.server import process as label_studio

PROBE_SECONDS = 5.0
ASKS_FOR_ACCOUNT = (401, 403)
VERSION = re.compile(r"\d+\.\d+[\w.+-]*")
ADDRESSES: Mapping[Name, str] = {
    "prefect": "PREFECT_API_URL",
    "mlflow": "MLFLOW_TRACKING_URI",
    "label-studio": "LABEL_STUDIO_URL",
}  # the variables that name the servers
FORMS = {
    "PREFECT_API_URL": "http(s)://HOST[:PORT]/api",
    "MLFLOW_TRACKING_URI": "http(s)://HOST[:PORT] of a server, or sqlite:///FILE",
    "MLFLOW_REGISTRY_URI": "http(s)://HOST[:PORT] of a server, or sqlite:///FILE",
}


@dataclass(frozen=True)
class Health:
    """The result of a health check: `version` when healthy, else the `problem`. `refused`: of the account, so that
    waiting does not help."""

    ok: bool
    version: str = ""
    problem: str = ""
    refused: bool = False


def health_of(name: Name, site: Site) -> Health:
    """Check the health of a part of the stack, including the database behind it."""
    if name == "postgres":
        problem, version = postgres.probe(site.addresses[name], site.credentials.secrets.postgres_password)
        return Health(ok=not problem, version=version, problem=problem)
    secrets = site.credentials.production if site.profile == "production" else None
    try:
        with httpx.Client(base_url=site.url(name), timeout=PROBE_SECONDS, verify=label_studio.authorities()) as http:
            if name == "prefect":
                return _prefect_health(http, site.prefect_auth)
            if name == "mlflow":
                return _mlflow_health(http, secrets)
            if name == "label-studio":
                return _label_studio_health(http, site.url(name), site.credentials.label_studio_token)
            return _worker_health(http)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Health(ok=False, problem=str(error) or type(error).__name__)


def check_address(variable: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise StackError, without credentials, for a variable that is not the address of a server.

    MLflow may also be a store without a server, sqlite:///FILE.
    """
    url, form = environment[variable], FORMS.get(variable, "http(s)://HOST[:PORT]")
    if variable.startswith("MLFLOW") and url.startswith("sqlite:///"):
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and bool(httpx.URL(url).host) and "@" not in parts._replace(netloc="").geturl()
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable or re.search(r"\s", url):
        advice = "; in a password write / as %2F and @ as %40" if "@" in url else ""
        raise StackError(f"{variable} must be {form}, not {shown_address(url)!r}{advice}: correct it, or unset it")


def health_elsewhere(name: Name, environment: Mapping[str, str] = os.environ) -> Health:
    """Check a server that the environment names. A refusal of the account is an answer: gateways may ask for one."""
    url = environment[ADDRESSES[name]].rstrip("/")
    if url.startswith("sqlite:"):
        return Health(ok=True, version="a file")
    try:
        if name == "label-studio":
            ready, problem = label_studio.is_ready(url, environment.get("LABEL_STUDIO_API_KEY", ""), PROBE_SECONDS)
            return Health(ok=ready, problem=problem)
        with httpx.Client(timeout=PROBE_SECONDS, verify=label_studio.authorities()) as http:
            return _is_prefect(http, url) if name == "prefect" else _is_mlflow(http, url)
    except (httpx.HTTPError, httpx.InvalidURL, BadCredentials) as error:
        return Health(ok=False, problem=redacted(str(error)) or type(error).__name__)


def _is_prefect(http: httpx.Client, url: str) -> Health:
    """Whether Prefect's API answers at an address: /health is `true` there, and any text at another server."""
    response = http.get(f"{url}/health")
    if response.status_code >= 500:
        return Health(ok=False, problem=f"/health answers {response.status_code}")
    version = http.get(f"{url}/admin/version")
    if isinstance(text := _json(version), str):
        return Health(ok=True, version=text)
    if response.status_code in ASKS_FOR_ACCOUNT or version.status_code in ASKS_FOR_ACCOUNT or _json(response) is True:
        return Health(ok=True)
    return Health(ok=False, problem=f"it is not Prefect's API, whose address ends with /api: {_answer(response)}")


def _is_mlflow(http: httpx.Client, url: str) -> Health:
    """Whether MLflow's API answers at an address, a tracking server or a gateway without /health and /version."""
    response = http.get(f"{url}/health")
    if response.status_code >= 500:
        return Health(ok=False, problem=f"/health answers {response.status_code}")
    version = http.get(f"{url}/version")
    if version.status_code == 200 and VERSION.fullmatch(version.text.strip()):
        return Health(ok=True, version=version.text.strip())
    search = http.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1})
    if search.status_code in ASKS_FOR_ACCOUNT or isinstance(_json(search), dict):
        return Health(ok=True)
    return Health(ok=False, problem=f"it is not MLflow's tracking server: {_answer(response)}")


def _json(response: httpx.Response) -> object:
    """The JSON value of a good response; None if there is none."""
    try:
        return response.json() if response.status_code == 200 else None
    except ValueError:
        return None


def _answer(response: httpx.Response) -> str:
    text = " ".join(response.text.split())
    return f"/health answers {response.status_code} with {text[:40]!r}"


def lets_strangers_in(site: Site) -> bool:
    """Whether Prefect's server answers under any host name: it was started before this project checked names."""
    auth = httpx.BasicAuth(*site.prefect_auth.split(":", 1)) if site.prefect_auth else None
    url, headers = f"{site.url('prefect')}/api/admin/version", {"Host": "stranger.invalid"}
    try:
        return httpx.get(url, auth=auth, headers=headers, timeout=PROBE_SECONDS, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def serves_pages_to_any_name(site: Site) -> bool:
    """Whether Label Studio shows its pages, with a cookie, under 127.0.0.1: it was started before they had a name."""
    url, headers = f"{site.url('label-studio')}/user/login/", {"Accept": "text/html"}
    try:
        return httpx.get(url, headers=headers, timeout=PROBE_SECONDS, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _prefect_health(http: httpx.Client, auth: str) -> Health:
    if auth:
        http.auth = httpx.BasicAuth(*auth.split(":", 1))
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
        return Health(ok=False, problem=str(error), refused=True)
    if not ready:
        return Health(ok=False, problem=seen)
    return Health(ok=True, version=str(http.get("/api/version").raise_for_status().json()["release"]))


def _worker_health(http: httpx.Client) -> Health:
    """A worker's own health check: healthy while it keeps polling Prefect for work."""
    response = http.get("/health")
    return Health(
        ok=response.status_code == 200, problem=f"/health answers {response.status_code}: {response.text[:200]}"
    )
