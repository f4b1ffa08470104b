"""Where the stack and the outputs of stages live."""

import os
from pathlib import Path


def home_directory(home: Path | None = None) -> Path:
    """The home of the stack: as given, or RLHF_HOME, or `.rlhf` here."""
    return (home or Path(os.environ.get("RLHF_HOME", ".rlhf"))).expanduser().resolve()
