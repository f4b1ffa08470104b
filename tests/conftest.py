"""Shared fixtures: one real Label Studio server for all tests, and a home for pipeline runs."""

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch

from flows.stack.services import QUIET
from labeling.server.client import LabelStudio
from labeling.server.process import running_server
from tests.labeling.helpers import TOKEN, settings

HERE = Path(__file__).parent
TINY = HERE / "recipes" / "tiny.yaml"
SHARED_DATA = HERE.parent.parent / "shared" / "data"

SERVERS = {"server_url", "prefect_server"}  # fixtures that start a server, also where other fixtures ask for them
STORES = {"empty_store"}  # fixtures that make a database of MLflow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they stand on, so that `make test-fast` can leave out what takes long to start."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if SERVERS & fixtures:
            item.add_marker("server")
        if STORES & fixtures:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Environment variables as before each test: commands and MLflow set some, and no test may lean on another's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Label Studio server."""
    with running_server(settings(tmp_path_factory.mktemp("label-studio")), timeout_seconds=600) as url:
        yield url


@pytest.fixture(scope="session")
def owner(server_url: str) -> Iterator[LabelStudio]:
    """The first account's client."""
    with LabelStudio(server_url, TOKEN) as client:
        yield client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with the schema in place: making one takes seconds, copying one nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """A Prefect server with a fresh database, for all tests; yields its address."""
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False})
    with quiet, prefect_test_harness(server_startup_timeout=300):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, prefect_server: str) -> Iterator[Path]:
    """A home for the pipelines of a file of tests: outputs, and an MLflow store in SQLite. One thread for torch."""
    home = tmp_path_factory.mktemp("home")
    (home / "mlflow.db").write_bytes(empty_store.read_bytes())
    store = f"sqlite:///{home / 'mlflow.db'}"
    told = {"RLHF_HOME": str(home), "PREFECT_API_URL": prefect_server, **QUIET}
    told |= {"MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store}  # MLflow sets them, and leaves them set
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (told | {"OMP_NUM_THREADS": "1"}).items():
            patch.setenv(name, value)
        patch.chdir(home)  # a store without a server puts artifacts under ./mlruns
        mlflow.set_tracking_uri(store)
        mlflow.set_registry_uri(store)
        yield home
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
