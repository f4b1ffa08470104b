"""Provenance of a result besides its inputs: the commit of the code and the versions of the libraries."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from labeling.child_environment import child_environment

LIBRARIES = (
    *("torch", "transformers", "trl", "tokenizers", "datasets", "numpy", "safetensors"),
    *("prefect", "mlflow", "label-studio-sdk", "rlhf-flows"),
)


@cache
def git_commit() -> str:
    """The commit of this code, with `-dirty` if files were changed; empty outside a repository."""
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            env=child_environment("program", os.environ),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
