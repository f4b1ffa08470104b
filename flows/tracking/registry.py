"""Registered model versions: one for each key, from safetensors, with provenance tags.

The MLflow model is stored under `served` in the artifacts of the stage's run, and a version points there: an upload
after a kill writes the same files again, and only the run's artifacts have to be restored or removed.
"""

import json
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import alignment
from alignment.errors import ArtifactError
from flows.tracking.layout import SERVED
from flows.tracking.runs import TAG_KEY, TAG_STAGE

SERVED_MODEL = Path(__file__).with_name("served_model.py")
ALIGNMENT = Path(alignment.__file__).parent  # logged with the model, which computes as training does
PLAIN = {".safetensors", ".json", ".jinja", ".txt", ".model", ".spm", ".md"}  # files that are data and never code
ALIGNMENT_NEEDS = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "pydantic", "jinja2")
REQUIREMENTS = (
    "mlflow",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "pydantic",
    "jinja2",
    "pandas",
)


def register(name: str, directory: Path, *, stage: str, key: str, run_id: str) -> str:
    """Upload `directory` (a Hugging Face checkpoint) to the run and register it; returns "models:/NAME/VERSION".

    The other members of an ensemble of reward models, next to the directory, are included. An existing version with
    this key is returned and not registered twice. Raises ArtifactError for files that are not safetensors or text.
    """
    check_weights(directory)
    ensemble = _ensemble(directory.parent)
    existing = find_version(name, key)
    if existing is not None:
        return existing
    with TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")  # the signature is explicit, not inferred
        mlflow.pyfunc.save_model(
            path=f"{temporary}/{SERVED}",
            python_model=str(SERVED_MODEL),
            artifacts={"hf": str(directory)} | ensemble,
            signature=_signature(directory),
            code_paths=[str(ALIGNMENT)],
            pip_requirements=[f"{library}=={version(library).split('+')[0]}" for library in REQUIREMENTS],
        )
        MlflowClient().log_artifacts(run_id, f"{temporary}/{SERVED}", SERVED)
    registered = mlflow.register_model(f"runs:/{run_id}/{SERVED}", name, tags={TAG_STAGE: stage, TAG_KEY: key})
    return _only_version(name, key, registered)


def register_as(name: str, model: str, *, stage: str, key: str) -> str:
    """Register the files of a version under another name as well: recipes that share a stage share its files."""
    client = MlflowClient()
    original = client.get_model_version(*name_and_number(model))
    existing = find_version(name, key)
    if existing is not None:
        return existing
    with suppress(MlflowException):  # it exists already; if not, the next call says why
        client.create_registered_model(name)
    tags = {TAG_STAGE: stage, TAG_KEY: key}
    registered = client.create_model_version(name, str(original.source), original.run_id, tags=tags)
    return _only_version(name, key, registered)


def _only_version(name: str, key: str, registered: ModelVersion) -> str:
    """The new version, without copies of it: MLflow's client repeats a request whose response was lost."""
    for number in _versions(name, key):
        if number != int(registered.version):
            MlflowClient().delete_model_version(name, str(number))
    return f"models:/{name}/{registered.version}"


def _ensemble(stage: Path) -> dict[str, str]:
    """The members after the first and the file of an ensemble of reward models; empty for a single model."""
    from alignment.models.scalar import ENSEMBLE_FILE  # imports torch, which takes seconds

    file = stage / ENSEMBLE_FILE
    if not file.exists():
        return {}
    count = json.loads(file.read_text(encoding="utf-8"))["members"]
    others = {f"member_{number}": stage / f"model-{number}" for number in range(1, count)}
    for directory in others.values():
        check_weights(directory)
    return {name: str(path) for name, path in others.items()} | {"ensemble": str(file)}


def check_weights(directory: Path) -> None:
    """Check that weights are safetensors and that no file of a checkpoint can execute code when loaded."""
    if not list(directory.glob("*.safetensors")):
        raise ArtifactError(f"{directory} has no *.safetensors; save the model with save_pretrained")
    files = [path for path in directory.rglob("*") if path.is_symlink() or path.is_file()]
    if strange := sorted(path.name for path in files if path.is_symlink() or path.suffix not in PLAIN):
        names, plain = ", ".join(strange), ", ".join(sorted(PLAIN))
        raise ArtifactError(
            f"{directory} contains {names}, which may execute code when loaded; keep only files of {plain}"
        )


def _signature(directory: Path) -> ModelSignature:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    scores = any("SequenceClassification" in name for name in config.get("architectures") or [])
    columns: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "prompt")]
    if scores:
        return ModelSignature(
            inputs=Schema([*columns, ColSpec(DataType.string, "response")]), outputs=Schema([ColSpec(DataType.double)])
        )
    params = [
        ParamSpec("max_new_tokens", DataType.long, 128),
        ParamSpec("temperature", DataType.double, 1.0),
        ParamSpec("seed", DataType.long, 0),
    ]
    return ModelSignature(
        inputs=Schema(columns), outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(params)
    )


def find_version(name: str, key: str) -> str | None:
    """The newest version of a model with this key."""
    newest = max(_versions(name, key), default=None)
    return None if newest is None else f"models:/{name}/{newest}"


def _versions(name: str, key: str) -> list[int]:
    versions = MlflowClient().search_model_versions(f"name = '{name}' and tag.`{TAG_KEY}` = '{key}'")
    return [int(version.version) for version in versions]


def versions_of_run(run_id: str) -> list[str]:
    """The versions that were registered from a run's files, under the names of all recipes."""
    versions = MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    return sorted(f"models:/{version.name}/{version.version}" for version in versions)


def name_and_number(model: str) -> tuple[str, str]:
    """The parts of "models:/NAME/VERSION" or "NAME/VERSION"."""
    name, number = model.removeprefix("models:/").rsplit("/", 1)
    return name, number


def version_exists(model: str) -> bool:
    """Whether "models:/NAME/VERSION" still exists."""
    name, number = name_and_number(model)
    try:
        MlflowClient().get_model_version(name, number)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def set_alias(model: str, alias: str) -> None:
    """Point an alias ("candidate", "champion") at "models:/NAME/VERSION"."""
    name, number = name_and_number(model)
    MlflowClient().set_registered_model_alias(name, alias, number)


def fetch_checkpoint(model: str, into: Path) -> Path:
    """Download the directories of a registered version: the checkpoint, and the other members of an ensemble."""
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(into))) / "artifacts"
