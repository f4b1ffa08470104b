"""No proxy between this machine and itself: the servers of the stack are never asked through HTTP_PROXY and the like.

httpx (Prefect), requests (MLflow), websockets and urllib read the same variables. httpx fails at every request, also at
one that needs no proxy, when one of them has a value that it cannot read.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import IPv6Address
from urllib.parse import urlsplit

import httpx

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EXEMPT = ("no_proxy", "NO_PROXY")  # where both are set some libraries read the first, others the second


def direct_loopback(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables for requests to this machine without a proxy: the entries in `environment`, loopback and `hosts`.

    Ranges of IPv6 addresses are left out: httpx refuses to work with them.
    """
    readable = [_readable(entry) for entry in _exemptions(environment)]
    value = ",".join(dict.fromkeys(entry for entry in (*readable, *LOOPBACK, *hosts) if entry))
    return dict.fromkeys(EXEMPT, value)


def unreadable_exemptions(environment: Mapping[str, str]) -> list[str]:
    """The entries of NO_PROXY that httpx cannot read, except ranges of IPv6 addresses."""
    return [e for e in _exemptions(environment) if not _readable(e) and not (e.count(":") > 1 and "/" in e)]


def _exemptions(environment: Mapping[str, str]) -> list[str]:
    entries = [entry.strip() for name in EXEMPT for entry in environment.get(name, "").split(",")]
    return list(dict.fromkeys(entry for entry in entries if entry))


def _readable(entry: str) -> str:
    """An entry of NO_PROXY as all libraries read it, hosts in Punycode; "" for what httpx cannot read."""
    entry = entry.strip("[]")
    with suppress(ValueError):
        return str(IPv6Address(entry))
    try:
        entry = entry if entry.isascii() else entry.encode("idna").decode()
        httpx.URL(entry if "://" in entry else f"all://*{entry}")  # as httpx does
    except (UnicodeError, httpx.InvalidURL):
        return ""
    return entry


def malformed_proxies(environment: Mapping[str, str]) -> list[str]:
    """The variables that name a proxy whose address cannot be read; httpx fails at every request then."""
    values = {name: value for name, value in sorted(environment.items()) if name.lower() in PROXIES and value}
    return [name for name, value in values.items() if not _is_address(value)]


def _is_address(proxy: str) -> bool:
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        return bool(urlsplit(url).hostname and httpx.URL(url).host) and urlsplit(url).port != 0
    except (ValueError, httpx.InvalidURL):
        return False


def unusable_proxies(environment: Mapping[str, str]) -> list[str]:
    """The variables that name a proxy which httpx cannot use: SOCKS without the package `socksio`, unknown schemes."""
    known = ("http", "https", *(("socks5", "socks5h") if find_spec("socksio") else ()))
    return [
        name
        for name, value in sorted(environment.items())
        if name.lower() in PROXIES and (scheme := re.match(r"(.*?)://", value)) and scheme[1].lower() not in known
    ]
