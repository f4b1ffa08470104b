"""A real MLflow store (SQLite, local files) and a home for outputs, fresh for each test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of a stack whose MLflow is a file of its own."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    monkeypatch.setenv("RLHF_HOME", str(home))
    monkeypatch.chdir(home)  # a store without a server puts artifacts under ./mlruns
    store = f"sqlite:///{home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # MLflow sets both, and leaves them set
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store)
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    yield home
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
