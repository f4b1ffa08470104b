"""Servers for tests, started as the local stack starts them."""

from pathlib import Path

from flows.stack import commands
from flows.stack.commands import Launch
from flows.stack.services import Credentials, Name, Site


def site_of(home: Path, ports: dict[Name, int], credentials: Credentials) -> Site:
    """A stack in `home` with servers on these ports of loopback."""
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    return Site(home=home, credentials=credentials, addresses=addresses)


def launch_of(name: Name, home: Path, port: int, credentials: Credentials) -> Launch:
    """How one of them is started; its directory is there afterwards."""
    site = site_of(home, {name: port}, credentials)
    commands.prepare(name, site)
    return commands.launch_of(name, site)
