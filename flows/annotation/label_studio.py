"""The Label Studio server that this process works with, and the local store of its annotations."""

import os

from flows.home import home_directory
from flows.recipe.untrusted import holds_credentials
from flows.stack.processes import StackError
from labeling.config import LabelingConfig
from labeling.server.client import LabelStudio
from labeling.store.store import Store

STORE_FILE = "annotations.db"


def client(config: LabelingConfig) -> LabelStudio:
    """Label Studio at the recipe's address, or of the local stack. Raises StackError where there is neither."""
    url, token = config.url or os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_API_KEY")
    if not url or not token:
        raise StackError(
            "no Label Studio is known: start the local one with `rlhf up`, or set LABEL_STUDIO_URL and "
            "LABEL_STUDIO_API_KEY"
        )
    if holds_credentials(url):
        raise StackError(
            "LABEL_STUDIO_URL holds credentials, and it is shown in pages and kept with results: take them out"
        )
    return LabelStudio(url, token)


def annotation_store() -> Store:
    """The store of all annotations, under the home of the stack."""
    return Store(home_directory() / STORE_FILE)
