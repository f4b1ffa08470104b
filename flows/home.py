"""The home directory of the stack and of the stages' outputs."""

import os
from pathlib import Path


def home_directory(home: Path | None = None) -> Path:
    """The home of the stack: the argument, else RLHF_HOME, else `.rlhf` in the working directory."""
    return (home or Path(os.environ.get("RLHF_HOME", ".rlhf"))).expanduser().resolve()
