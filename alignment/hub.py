"""The hub of Hugging Face, asked once and briefly before its libraries ask, which repeat a request for many minutes."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from alignment.errors import ConfigError, RLHFError, causes

log = logging.getLogger(__name__)
PROBE_SECONDS = 5.0


@contextmanager
def hub_read(name: str, problem: type[RLHFError], *libraries: ModuleType) -> Iterator[None]:
    """For a block that reads `name` from the hub: where the hub does not answer, it is read from the hub's cache alone.

    `libraries` have a switch HF_HUB_OFFLINE of their own. Raises `problem` if the cache does not have it.
    """
    check_hub_address()
    if any(library.HF_HUB_OFFLINE for library in (constants, *libraries)):
        yield
        return
    host = hub_host()
    log.info("asking the hub (%s) for %s", host, name)
    silence = _silence()
    if not silence:
        yield
        return
    _warn_once(host, silence, name)
    try:
        with _offline(constants, *libraries):
            yield
    except Exception as error:  # of any of the libraries
        if not _not_cached(error):
            raise
        raise problem(
            f"{name} is no file or directory here, and the hub ({host}) does not answer ({silence}). Check the "
            f"network (HF_ENDPOINT, HTTPS_PROXY), or download it elsewhere with `hf download {name} --local-dir "
            "DIRECTORY` (a data set also needs --repo-type dataset) and name that directory"
        ) from error


@lru_cache(maxsize=1000)
def _warn_once(host: str, silence: str, name: str) -> None:
    log.warning("the hub (%s) does not answer (%s): %s is read from its cache, if it is there", host, silence, name)


def hub_host() -> str:
    """Host and port of the hub, without credentials."""
    return urlsplit(constants.ENDPOINT)._replace(scheme="").geturl().rpartition("@")[2].strip("/")


def check_hub_address() -> None:
    """Raise ConfigError for credentials in HF_ENDPOINT, which the hub's library would print with every retry."""
    if "@" in os.environ.get("HF_ENDPOINT", ""):
        raise ConfigError("HF_ENDPOINT contains credentials: remove them from the address, and set HF_TOKEN instead")


def _silence() -> str:
    """Why the hub does not answer; "" if it does, whatever it says."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # of the HTTP library that the hub's library uses
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


@contextmanager
def _offline(*libraries: ModuleType) -> Iterator[None]:
    before = [library.HF_HUB_OFFLINE for library in libraries]
    for library in libraries:
        library.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _not_cached(error: BaseException) -> bool:
    """Whether something was not in the cache, if that caused the error."""
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, FileNotFoundError)
    return any(isinstance(cause, kinds) for cause in causes(error))
