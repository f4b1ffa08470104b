"""Outputs of stages: their names, keys and digests, and how they are published atomically.

An artifact's *key* is a hash of what went in (stage, version, options, inputs, files read), so the same work has the
same key on every machine. Its *digest* is a hash of the output, so a changed or half-written output is detected.
"""

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment.bounded import open_regular
from alignment.errors import ArtifactError, DataError

KEY_LENGTH_IN_NAMES = 16
READ_BYTES = 1 << 20
PRIVATE = 0o600  # mode of a file that only its owner may read


class Artifact(BaseModel):
    """A handle on the published output of a stage, which stages exchange instead of models and tensors.

    `model` is the registered version ("models:/sft/3") if the stage registers one. `cached` is whether this
    call reused an earlier output, `seconds` how long the work took when it was done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    stage: str
    key: str
    run_id: str
    path: Path
    digest: str
    model: str | None = None
    cached: bool = False
    seconds: float = 0.0

    def file(self, name: str) -> Path:
        """The path of a file of the output. Raises ArtifactError if there is no file of that name."""
        path = self.path / name
        if not path.exists():
            raise ArtifactError(
                f"the output of stage '{self.stage}' has no {name} in {self.path}; remove that directory and run again"
            )
        return path

    def result(self) -> dict[str, float]:
        """The metrics that the stage returned."""
        return read_result(self.path)


def canonical(value: object) -> Any:
    """The plain JSON form of a value, which is the same in every process; 3 and 3.0 are the same number.

    Raises ArtifactError for values without such a form: sets (order), functions and objects (addresses), infinite
    floats and NaN, and paths (a path is not its content: pass the digest of the file).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArtifactError(f"{value} cannot be part of a key: use a finite number")
        return int(value) if value.is_integer() else value
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        unnamed = [key for key in value if not isinstance(key, str)]
        if unnamed:
            raise ArtifactError(f"{unnamed[0]!r} cannot be part of a key: names must be text")
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise ArtifactError(
        f"a {type(value).__name__} ({value!r}) has no stable form and cannot be part of a key: "
        "use numbers, text, lists and mappings, and the digest of a file instead of its path"
    )


def fingerprint(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`. Raises ArtifactError for values without a stable form."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(
    stage: str, *, version: int, config: object, inputs: Mapping[str, str], file_digests: Sequence[str], seed: int
) -> str:
    """The key of a stage's output: a hash of everything that may change the result, and nothing else.

    `version` is the stage's version number, raised when its code changes the result; `inputs` maps names to keys.
    """
    return fingerprint(
        {
            "stage": stage,
            "version": version,
            "config": config,
            "inputs": dict(inputs),
            "files": list(file_digests),
            "seed": seed,
        }
    )


def output_name(stage: str, key: str) -> str:
    """The directory name of a stage's output. Raises ArtifactError for a stage or key that is not a plain name."""
    if not re.fullmatch(r"[A-Za-z]\w*", stage) or not re.fullmatch(r"\w+", key):
        raise ArtifactError(f"{stage!r} and {key!r} name no output of a stage: was a run's tag changed in MLflow?")
    return f"{stage}-{key[:KEY_LENGTH_IN_NAMES]}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def directory_digest(directory: Path) -> str:
    """SHA-256 over the relative paths and the digests of all files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(directory).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """The digest of a file or a directory. Raises DataError if neither exists."""
    if path.is_dir():
        return directory_digest(path)
    if path.is_file():
        return file_digest(path)
    raise DataError(f"there is no file {path}; check the path (relative ones start at {Path.cwd()})")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file atomically, by a rename: a reader sees the whole file or none. `mode` is subject to the umask."""
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)  # left by a killed process, perhaps with another mode
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_result(directory: Path) -> dict[str, float]:
    """The metrics in `result.json` of a stage's output."""
    path = directory / "result.json"
    try:
        result: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); remove {directory} and run again") from error
    return result


def publish(work: Path, final: Path) -> None:
    """Move a finished directory to its final name atomically; an earlier directory of that name is removed.

    The files are flushed to disk first, so that after a power cut the name never refers to incomplete files.
    """
    for path in work.rglob("*"):
        if path.is_file():
            _flush(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = None
    if final.exists():
        replaced = final.with_name(f"{final.name}.replaced-{uuid.uuid4().hex[:8]}")
        final.rename(replaced)
    work.rename(final)
    _flush(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
