"""Shared fixtures: one real Label Studio server for all tests, and a home for pipeline runs."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
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
    before, umask = dict(os.environ), os.umask(0o022)
    yield
    os.umask(umask)
    os.environ.clear()
    os.environ.update(before)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that the first worker of pytest-xdist makes and all workers read."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with (directory.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            (directory / "complete").touch()
    return directory


def make_label_studio_data(directory: Path) -> None:
    """The data of a Label Studio server that was started once."""
    with running_server(settings(directory / "data"), timeout_seconds=600):
        pass


@pytest.fixture(scope="session")
def label_studio_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of a Label Studio server with the schema and the first account: making them takes a core 40 seconds."""
    return made_once(tmp_path_factory, "label-studio-data", make_label_studio_data) / "data"


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory, label_studio_data: Path) -> Iterator[str]:
    """A running Label Studio server."""
    directory = tmp_path_factory.mktemp("label-studio") / "data"
    shutil.copytree(label_studio_data, directory)
    with running_server(settings(directory), timeout_seconds=600) as url:
        yield url


@pytest.fixture(scope="session")
def owner(server_url: str) -> Iterator[LabelStudio]:
    """The first account's client."""
    with LabelStudio(server_url, TOKEN) as client:
        yield client


def make_mlflow_store(directory: Path) -> None:
    """An empty MLflow database."""
    mlflow.MlflowClient(f"sqlite:///{directory / 'mlflow.db'}").search_experiments()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with the schema in place: making one takes seconds, copying one nothing."""
    return made_once(tmp_path_factory, "mlflow-store", make_mlflow_store) / "mlflow.db"


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
