"""Servers for tests, started as the local stack starts them."""

from pathlib import Path

from flows.stack import commands
from flows.stack.commands import Launch
from flows.stack.services import Credentials, Name, Site


def site_of(home: Path, ports: dict[Name, int], credentials: Credentials) -> Site:
    """A stack in `home` with servers on these ports of loopback."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    return Site(home=home, credentials=credentials, addresses=addresses)


def hostile_environment(url: str) -> dict[str, str]:
    """Proxies and addresses that lead to `url`, accounts on other servers, and a NO_PROXY that httpx cannot read."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "all_proxy"), url)
    account = url.replace("//", "//me:hunter22@")
    return proxies | {
        "ALL_PROXY": "socks://127.0.0.1:9",
        "NO_PROXY": "::1/128,.example",
        "MLFLOW_TRACKING_URI": account,
        "MLFLOW_REGISTRY_URI": account,
        "MLFLOW_TRACKING_TOKEN": "hunter22",
        "MLFLOW_RUN_ID": "0" * 32,
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_API_KEY": "hunter22",
        "PREFECT_PROFILE": "cloud",
        "LABEL_STUDIO_URL": url,
    }


def launch_of(name: Name, home: Path, port: int, credentials: Credentials) -> Launch:
    """How one of them is started; its directory is there afterwards."""
    site = site_of(home, {name: port}, credentials)
    commands.prepare(name, site)
    return commands.launch_of(name, site)
