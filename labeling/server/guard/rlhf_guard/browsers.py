"""Which requests of browsers are refused, and the page that leads them to the name of Label Studio's pages."""

import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress

SAFE = ("GET", "HEAD", "OPTIONS")
SAME_ORIGIN = ("same-origin", "none")  # Sec-Fetch-Site of own pages, and of what a person typed
COOKIES = ("sessionid", "csrftoken")
PROGRAMS = """<!doctype html><meta charset="utf-8"><title>Label Studio</title>
<p>This address is for programs, which ask for 127.0.0.1. Open Label Studio's pages by the link that
<code>rlhf status</code> prints.</p>
<script>
const name = /^#labels-[0-9a-f]{16}$/.test(location.hash) ? location.hash.slice(1) : localStorage.getItem("name");
if (name) {
  localStorage.setItem("name", name);
  const port = location.port ? ":" + location.port : "";
  location.replace(`http://${name}.localhost${port}${location.pathname}${location.search}`);
}
</script>
"""
PROGRAMS_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_held: list[socket.socket] = []


def has_token(headers: Mapping[str, str]) -> bool:
    """Whether a request names its account in a header, which pages of others cannot set."""
    return bool(headers.get("HTTP_AUTHORIZATION") or headers.get("HTTP_X_API_KEY"))


def elsewhere(page_host: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes under another host name than that of the pages (with its port, "" for any name).

    Programs ask by address or as `localhost`. Under any other name a page may ask that was led here (DNS rebinding):
    browsers send no `Origin` and no `Sec-Fetch-Site` when such a page reads what it takes for its own server.
    """
    name = _name(headers.get("HTTP_HOST", ""))
    if not page_host or name == _name(page_host):
        return False
    if name not in ("", "localhost") and not _is_address(name):
        return True
    page = "text/html" in headers.get("HTTP_ACCEPT", "")
    return page or "HTTP_SEC_FETCH_SITE" in headers or "HTTP_ORIGIN" in headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def origin_refusal(method: str, path: str, headers: Mapping[str, str], public: str, session: bool) -> str:
    """Why a request that a page of another origin caused is refused; "" for all others.

    `headers` are those of WSGI. A proxy may change the Host header: `public` is the host (and port) that browsers see.
    Reading the API counts as well, since a request can keep the server busy for long.
    """
    if not session and (has_token(headers) or method in SAFE):
        return ""
    if method in ("HEAD", "OPTIONS") or (method == "GET" and not path.startswith(("/api/", "/logout"))):
        return ""
    own = {headers.get("HTTP_HOST", "").lower(), public.lower()}
    origin = headers.get("HTTP_ORIGIN")
    if origin is not None and origin.lower().partition("://")[2] not in own - {""}:
        return "requests from pages of another origin are refused"
    if headers.get("HTTP_SEC_FETCH_SITE", "none") not in SAME_ORIGIN:
        return "requests from pages of another site are refused"
    return ""


def _name(host: str) -> str:
    """A host in lower case without its port."""
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    return name.lower().rstrip(".")


def hold(page_host: str) -> None:
    """Keep others from listening on the port of the pages on ::1, where browsers look for the name as well."""
    port = page_host.rpartition(":")[2]
    if port.isdigit():
        with suppress(OSError):  # held by another worker, or a machine without IPv6
            held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            held.bind(("::1", int(port)))
            _held.append(held)
