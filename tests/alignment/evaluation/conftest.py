"""One set of models shared by all evaluation tests; read-only."""

import pytest

from tests.alignment.evaluation.world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The directory that `make_world` fills."""
    return make_world(tmp_path_factory.mktemp("evaluate"))
