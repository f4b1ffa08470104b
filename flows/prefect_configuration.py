"""What configures Prefect in our processes: variables, and no file.

Prefect reads `.env`, `prefect.toml` and `pyproject.toml` in the working directory, and files in PREFECT_HOME. They name
servers, accounts, and code to call (`logging.yml`). A data set or a backup of others may bring such files, so none of
them is read.
"""

import os
from collections.abc import Callable
from typing import Any

from pydantic_settings.sources import ConfigFileSourceMixin, DotEnvSettingsSource

NOWHERE = f"{os.devnull}/none"  # no file can be there
NO_CONFIGURATION = {"PREFECT_PROFILES_PATH": NOWHERE, "PREFECT_LOGGING_CONFIG_PATH": NOWHERE}
READERS: tuple[tuple[type, str], ...] = (  # of pydantic-settings, from which Prefect's are derived
    (DotEnvSettingsSource, "_read_env_files"),
    (ConfigFileSourceMixin, "_read_files"),
)


def read_no_files() -> None:
    """Let Prefect read no file of configuration in this process. It acts on import, so call this before.

    Variables that are set stay: whoever starts the process sets them.
    """
    for name, value in NO_CONFIGURATION.items():
        os.environ.setdefault(name, value)
    for owner, method in READERS:
        setattr(owner, method, _without_prefect(getattr(owner, method)))


def _without_prefect(read: Callable[..., Any]) -> Callable[..., Any]:
    """A reader that finds nothing for a source of Prefect's, and reads as before for any other."""

    def reader(self: object, *arguments: Any, **options: Any) -> Any:
        if type(self).__module__.startswith("prefect."):
            return {}
        return read(self, *arguments, **options)

    return reader
