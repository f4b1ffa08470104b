"""No proxy between this machine and itself: the servers of the stack are never asked through HTTP_PROXY and the like.

httpx (Prefect), requests (MLflow), websockets and urllib read the same variables. httpx fails at every request, also at
one that needs no proxy, when one of them has a value that it cannot read.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EXEMPT = ("no_proxy", "NO_PROXY")  # where both are set some libraries read the first, others the second


def direct_loopback(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables for requests to this machine without a proxy: the entries in `environment`, loopback and `hosts`.

    Ranges of IPv6 addresses are left out: httpx refuses to work with them.
    """
    entries = [entry.strip() for name in EXEMPT for entry in environment.get(name, "").split(",")]
    readable = [entry.strip("[]") for entry in entries if not (entry.count(":") > 1 and "/" in entry)]
    value = ",".join(dict.fromkeys(entry for entry in (*readable, *LOOPBACK, *hosts) if entry))
    return dict.fromkeys(EXEMPT, value)


def unusable_proxies(environment: Mapping[str, str]) -> list[str]:
    """The variables that name a proxy which httpx cannot use: SOCKS without the package `socksio`, unknown schemes."""
    known = ("http", "https", *(("socks5", "socks5h") if find_spec("socksio") else ()))
    return [
        name
        for name, value in sorted(environment.items())
        if name.lower() in PROXIES and (scheme := re.match(r"(.*?)://", value)) and scheme[1].lower() not in known
    ]
