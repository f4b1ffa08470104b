"""Untrusted input: YAML with limits on size and depth, and URLs that contain credentials."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

LONGEST_CHARACTERS = 1_000_000
MOST_VALUES, DEEPEST = 100_000, 50
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


def plain_yaml(text: str) -> Any:
    """Parse YAML to plain values. Raises ValueError if it is too long, too deep, or expands too far by aliases."""
    if len(text) > LONGEST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST_CHARACTERS}")
    try:
        values = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    for number, _ in enumerate(_walk(values)):
        if number > MOST_VALUES:
            raise ValueError(f"it expands to more than {MOST_VALUES} values: check its aliases")
    return values


def _walk(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value with the dotted path of its key."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    yield path, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in inner:
        yield from _walk(item, f"{path}.{name}" if path else str(name), depth + 1)


def refuse_credentials(values: Any) -> None:
    """Raise ValueError for a URL with credentials, without repeating it: Prefect and MLflow store the whole recipe."""
    for path, value in _walk(values):
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
