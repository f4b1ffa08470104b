"""A separate environment for TRL, as its last release with PPO is older than the one that this project installs."""

import subprocess
import sys
from pathlib import Path

PINS = ("torch==2.13.0", "trl==1.12.0", "transformers==5.23.0", "psutil>=7")


def trl_python(home: Path) -> Path:
    """The Python of an environment with the pinned packages under `home`; created once."""
    python, ready = home / "trl" / "bin" / "python", home / "trl" / ".ready"
    if not ready.exists() or ready.read_text(encoding="utf-8") != "\n".join(PINS):
        print(f"Installing {', '.join(PINS)} into {home / 'trl'} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", home / "trl"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        ready.write_text("\n".join(PINS), encoding="utf-8")
    return python
