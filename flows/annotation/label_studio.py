"""The Label Studio client of this process, and the local store of annotations."""

import os

from flows.home import home_directory
from flows.recipe.credentials import holds_credentials, shown_address
from flows.stack.processes import StackError
from labeling.config import LabelingConfig
from labeling.server.client import LabelStudio
from labeling.store.store import Store

STORE_FILE = "annotations.db"


def client(config: LabelingConfig) -> LabelStudio:
    """Label Studio at the recipe's address, else of the environment (`use_stack` sets it). Raises StackError.

    The token in the environment is only sent to the address beside it, or to the same server's public address.
    """
    named, token = os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_API_KEY")
    url = config.url or named
    owners = {_address(address) for address in (named, os.environ.get("RLHF_PUBLIC_URL")) if address}
    if url and token and named and _address(url) not in owners:
        raise StackError(
            f"the recipe's labeling.url is {shown_address(url)}, but LABEL_STUDIO_API_KEY belongs to "
            f"{shown_address(named)}: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY to those of the recipe's server, "
            "or remove labeling.url"
        )
    if not url or not token:
        raise StackError(
            "no Label Studio is configured: start the local one with `rlhf up`, or set LABEL_STUDIO_URL and "
            "LABEL_STUDIO_API_KEY"
        )
    if holds_credentials(url):
        raise StackError(
            "LABEL_STUDIO_URL contains credentials, but it is shown in pages and stored with results: remove them"
        )
    return LabelStudio(url, token)


def _address(url: str) -> str:
    return url.rstrip("/").replace("//localhost", "//127.0.0.1")


def annotation_store() -> Store:
    """The store of all annotations, under the home of the stack."""
    return Store(home_directory() / STORE_FILE)
