"""What others wrote, read with bounds: YAML that cannot grow without end, and addresses with credentials in them."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

LONGEST_CHARACTERS = 1_000_000
MOST_VALUES, DEEPEST = 100_000, 50
SECRET_NAME = re.compile(r"(TOKEN|SECRET|SECRET_KEY|API_KEY|ACCESS_KEY|PASSWORD|AUTH_STRING)$", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; what is shorter would be found everywhere
IN_ADDRESS = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]*://)(?P<who>[^/\s@'\"]+)@"
    r"|(?P<named>[?&][\w-]*(?:token|secret|password|passwd|api_?key|access_key|signature)=)[^&\s'\"]+",
    re.IGNORECASE,
)
HIDDEN = "***"


def plain_yaml(text: str) -> Any:
    """YAML as plain values. Raises ValueError for what is too long, too deep, or grows by aliases beyond all use."""
    if len(text) > LONGEST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST_CHARACTERS}")
    try:
        values = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    for number, _ in enumerate(_walk(values)):
        if number > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values: do aliases repeat themselves?")
    return values


def _walk(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value with the path of its key."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    yield path, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in inner:
        yield from _walk(item, f"{path}.{name}" if path else str(name), depth + 1)


def refuse_credentials(values: Any) -> None:
    """Raise ValueError, which does not repeat it, for a text with credentials in an address: recipes are written down
    whole in Prefect and MLflow."""
    for path, value in _walk(values):
        if isinstance(value, str) and holds_credentials(value):
            raise ValueError(
                f"{path} holds credentials in an address, and recipes are written down in Prefect and MLflow: take "
                "them out; LABEL_STUDIO_API_KEY and the like belong in the environment"
            )


def holds_credentials(text: str) -> bool:
    """Whether there is an address with credentials in a text (user:password@host, ?token=…)."""
    return IN_ADDRESS.search(text) is not None


def redacted(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """The text without these secrets and without credentials in addresses."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return IN_ADDRESS.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    return f"{match['before']}{HIDDEN}@" if match["before"] else f"{match['named']}{HIDDEN}"


def secrets_of(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The values of an environment (or of a file of credentials) that are secrets by their names."""
    named = [str(value) for name, value in environment.items() if SECRET_NAME.search(name)]
    return frozenset(value for value in named if len(value) >= SHORTEST_SECRET)
