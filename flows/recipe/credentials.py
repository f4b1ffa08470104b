"""Credentials in URLs and in environments: refused in recipes, hidden in messages."""

import os
import re
from collections.abc import Mapping
from typing import Any

from alignment.plain_yaml import walk

SECRET_NAME = re.compile(r"(TOKEN|SECRET|SECRET_KEY|API_KEY|ACCESS_KEY|PASSWORD|AUTH_STRING)$", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; shorter values would match everywhere
IN_ADDRESS = re.compile(  # the bounds keep long texts without an address cheap
    r"(?P<before>[a-z][a-z0-9+.-]{0,63}://)(?P<who>[^/\s@:'\"]{0,256}:[^\s'\"]{0,1024}|[^/\s@'\"]{1,1024})@"
    r"|(?P<named>[?&][\w-]*(?:token|secret|password|passwd|api_?key|access_key|signature)=)[^&\s'\"]+",
    re.IGNORECASE,
)
WITHOUT_SCHEME = re.compile(  # user:password@host, as people write it
    r"(?<![^\s'\"`<>()\[\]{}=,;])[^\s:/@'\"`<>()\[\]{}=,;]{1,128}:(?!//)[^\s'\"]{1,256}@(?=[\w\[])"
)
HIDDEN = "***"


def refuse_credentials(values: Any) -> None:
    """Raise ValueError for a URL with credentials, without repeating it: Prefect and MLflow store the whole recipe."""
    for path, value in walk(values):
        if isinstance(value, str) and holds_credentials(value):
            raise ValueError(
                f"{path} contains credentials in a URL, but recipes are stored in Prefect and MLflow: remove them; "
                "LABEL_STUDIO_API_KEY and other secrets belong in the environment"
            )


def holds_credentials(text: str) -> bool:
    """Whether a text contains a URL with credentials (user:password@host, ?token=…)."""
    return IN_ADDRESS.search(text) is not None


def redacted(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """The text without these secrets and without credentials in URLs."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return WITHOUT_SCHEME.sub(f"{HIDDEN}@", IN_ADDRESS.sub(_hide, text))


def shown_address(url: str) -> str:
    """An address as messages show it: nothing of what stands before an @, and no tokens in the query."""
    scheme, separator, _ = url.partition("://")
    _, at, after = url.rpartition("@")
    if not at:
        return redacted(url)
    kept = f"{scheme}://" if separator and scheme.lower() in ("http", "https", "postgresql") else ""
    return redacted(f"{kept}{HIDDEN}@{after}")


def _hide(match: re.Match[str]) -> str:
    return f"{match['before']}{HIDDEN}@" if match["before"] else f"{match['named']}{HIDDEN}"


def secrets_of(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The values of an environment (or of a credentials file) whose names mark them as secrets."""
    named = [str(value) for name, value in environment.items() if SECRET_NAME.search(name)]
    return frozenset(value for value in named if len(value) >= SHORTEST_SECRET)
