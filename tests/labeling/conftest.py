"""One real Label Studio server for all tests of this folder."""

from collections.abc import Iterator

import pytest

from labeling.client import LabelStudio
from labeling.server import running_server
from tests.labeling.helpers import TOKEN, settings


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server."""
    with running_server(settings(tmp_path_factory.mktemp("label-studio"))) as url:
        yield url


@pytest.fixture(scope="session")
def owner(server_url: str) -> Iterator[LabelStudio]:
    """The first account's client."""
    with LabelStudio(server_url, TOKEN) as client:
        yield client
