"""The Label Studio client of this process, and the local store of annotations."""

import os

from flows.home import home_directory
from flows.recipe.untrusted import holds_credentials
from flows.stack.processes import StackError
from labeling.config import LabelingConfig
from labeling.server.client import LabelStudio
from labeling.store.store import Store

STORE_FILE = "annotations.db"


def client(config: LabelingConfig) -> LabelStudio:
    """Label Studio at the recipe's address, else of the local stack. Raises StackError when neither is configured."""
    url, token = config.url or os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_API_KEY")
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


def annotation_store() -> Store:
    """The store of all annotations, under the home of the stack."""
    return Store(home_directory() / STORE_FILE)
