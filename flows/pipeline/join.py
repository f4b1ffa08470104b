"""Another machine's share of stages in several processes: `NODE_RANK=1 python -m flows.pipeline.join`.

It runs on every machine but the first, with the same RLHF_HOME, at the same path on a file system that all have. The
first machine announces each launch in `RLHF_HOME/launch.json` (`flows.pipeline.accelerate`); here its processes are
started once, and ended when the announcement is gone. They meet by torchrun's rendezvous at the address in the launch
file, or at MASTER_ADDR and MASTER_PORT.
"""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import ConfigError, RLHFError
from flows.console import configure_logging
from flows.home import home_directory
from flows.pipeline.accelerate import ANNOUNCEMENT, CONFIG_FILE, POLL_SECONDS, start_launcher, terminate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Announced:
    """A launch of the first machine: its own id, and the directory of its files."""

    id: str
    directory: Path


def announced(home: Path) -> Announced | None:
    """The launch that the first machine announces; None without one."""
    try:
        values = json.loads((home / ANNOUNCEMENT).read_text(encoding="utf-8"))
        return Announced(str(values["id"]), Path(values["directory"]))
    except FileNotFoundError:
        return None


def machine_rank() -> int:
    """This machine's number. Raises ConfigError if it is not set, or is that of the first machine."""
    rank = os.environ.get("NODE_RANK", "")
    if not rank.isdecimal() or rank == "0":
        raise ConfigError(f"NODE_RANK is '{rank}': set it to this machine's number, from 1; the first runs `rlhf run`")
    return int(rank)


def start(launch: Announced, home: Path, rank: int) -> subprocess.Popen[bytes]:
    """Start this machine's processes of a launch; their output goes to a log of this machine."""
    options: dict[str, Any] = yaml.safe_load((launch.directory / CONFIG_FILE).read_text(encoding="utf-8"))
    file = home / "logs" / f"{launch.directory.parent.name.removesuffix('.partial')}-machine-{rank}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    log.info("machine %d takes part in %s; its log is %s", rank, launch.directory.parent.name, file)
    with file.open("ab") as output:
        return start_launcher(launch.directory, output, options | {"machine_rank": rank})


def take_part(home: Path, rank: int) -> None:
    """Take part in every launch, until this process is ended."""
    current: Announced | None = None
    child: subprocess.Popen[bytes] | None = None
    try:
        while True:
            now = announced(home)
            if now != current:
                if child is not None:
                    terminate(child)
                current, child = now, None if now is None else start(now, home, rank)
            elif child is not None and child.poll() is not None:
                log.info("the processes of this machine have ended with exit code %d", child.returncode)
                child = None
            time.sleep(POLL_SECONDS)
    finally:
        if child is not None:
            terminate(child)


if __name__ == "__main__":
    configure_logging()
    try:
        take_part(home_directory(), machine_rank())
    except RLHFError as failure:
        sys.exit(f"rlhf: {failure}")
