"""`rlhf sample`: responses of registered models, or of checkpoints, to prompts from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import mlflow

from alignment.artifacts import content_digest, fingerprint, write_json
from alignment.bounded import read_json
from alignment.config.stages import ComputeConfig, RowSource
from alignment.errors import ArtifactError, ConfigError
from alignment.paths import exists, is_directory
from alignment.records import Split
from flows.home import home_directory
from flows.releases.versions import resolve
from flows.tracking import registry, runs
from flows.tracking.layout import MODEL
from flows.tracking.runner import find

FOLDER, IDENTITY = "responses", "sample.json"
LONGEST_NAME = 60


@dataclass(frozen=True)
class Checkpoint:
    """A model to sample from: its name in files, what identifies its weights, and where it is."""

    name: str
    identity: str
    directory: Path


def find_model(model: str, downloads: Path) -> Checkpoint:
    """A registered version (NAME, NAME@ALIAS, NAME/VERSION) or a directory with a checkpoint.

    A version whose files are not in the home is downloaded into a new directory in `downloads`.
    """
    if is_directory(model):
        path = Path(model) / MODEL if is_directory(Path(model) / MODEL) else Path(model)
        if not exists(path / "config.json"):
            raise ConfigError(f"{model} is a directory without a config.json: name a checkpoint, or a registered model")
        return Checkpoint(path.resolve().name, content_digest(path), path)
    name, version = resolve(model)
    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    artifact = find(tags.get(runs.TAG_STAGE, ""), tags.get(runs.TAG_KEY, ""), home_directory())
    if artifact is not None:
        return Checkpoint(f"{name}-{version}", artifact.digest, artifact.path / MODEL)
    directory = registry.fetch_checkpoint(f"models:/{name}/{version}", Path(mkdtemp(dir=downloads))) / MODEL
    return Checkpoint(f"{name}-{version}", content_digest(directory), directory)


def sample(
    checkpoints: Sequence[Checkpoint],
    source: RowSource,
    split: Split | None,
    options: Mapping[str, Any],
    compute: ComputeConfig,
    out: Path | None,
) -> tuple[Path, dict[str, int]]:
    """Sample response sets; returns their directory and counts. The same arguments go on where they were stopped.

    Raises ConfigError if `out` has those of other models, prompts or options.
    """
    from alignment.data.model_responses import SampleOptions, read_prompts, sample_sets  # with torch

    names = [checkpoint.name for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        raise ConfigError(f"the models {', '.join(names)} have the same name: name each model once")
    settings = SampleOptions.model_validate(options)
    prompts, rejected, others = read_prompts(source, split)
    identity = {
        "models": {checkpoint.name: checkpoint.identity for checkpoint in checkpoints},
        "prompts": fingerprint([row.prompt.model_dump(mode="json") for row in prompts]),
        "options": settings.model_dump(mode="json", exclude={"batch_size"}),
    }
    directory = out or home_directory() / FOLDER / f"{'-'.join(names)[:LONGEST_NAME]}-{fingerprint(identity)[:8]}"
    _claim(directory, identity)
    paths = {checkpoint.name: checkpoint.directory for checkpoint in checkpoints}
    counts = sample_sets(paths, prompts, rejected, settings, compute, directory)
    return directory, counts | {"of another split": others}


def _claim(directory: Path, identity: Mapping[str, Any]) -> None:
    """Note what the directory holds. Raises ConfigError if it holds something else."""
    path = directory / IDENTITY
    if path.exists():
        if read_json(path) != identity:
            raise ConfigError(
                f"{directory} has responses of other models, prompts or options ({path}): choose another --out"
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise ArtifactError(f"{directory} is not empty and has no {IDENTITY}: choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)
