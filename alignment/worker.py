"""A process of a distributed training stage, started by `accelerate launch … -m alignment.worker OUT/launch`.

The directory contains `step.json`. Every process performs the step; only the main process writes to OUT and writes
`figures.json`. A process that fails writes `error-N.json`, and the launcher terminates the others.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from matplotlib.figure import Figure

from alignment import errors
from alignment.artifacts import write_json
from alignment.config.stages import ComputeConfig
from alignment.distributed.collectives import OtherFailed, check_same, on_main, process_count, process_index
from alignment.distributed.devices import device_of
from alignment.distributed.parent_death import TIED_TO, tie
from alignment.distributed.sharding import enabled, shard_trainers_on_cpu
from alignment.errors import ConfigError, RLHFError
from alignment.journal import Journal
from alignment.stages import read_step

CONNECTION = "gloo/transport"  # in the message of torch's error when another process has disappeared
STEP, FIGURES, ERROR = "step.json", "figures.json", "error-{}.json"


class ReadOnlyJournal(Journal):
    """The journal of every process but the main one: reads the main process's files and writes nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Does nothing: the main process logs the same values."""

    def rewind(self, step: int) -> None:
        """Does nothing: the main process rewinds the file."""

    def figure(self, name: str, figure: Figure) -> Path:
        """The path at which the main process saves the figure."""
        return self.directory / "figures" / f"{name}.png"

    def describe(self, environment: Mapping[str, str]) -> None:
        """Does nothing: the main process describes itself."""

    def note(self, name: str, lines: object) -> None:
        """Does nothing: the main process writes the same note."""


def main(directory: Path) -> None:
    """Run one worker process, with its process group."""
    tie(int(os.environ[TIED_TO]))
    step, _ = read_step((directory / STEP).read_text(encoding="utf-8"))
    state = connect(step.compute)
    perform(directory)
    state.destroy_process_group()


def connect(compute: ComputeConfig) -> PartialState:
    """Connect to the other processes: over gloo on the cores, over NCCL with a GPU for each."""
    on_cpu = device_of(compute).type == "cpu"
    state = PartialState(cpu=on_cpu)
    if on_cpu and enabled():
        shard_trainers_on_cpu()
    return state


def perform(directory: Path) -> None:
    """Perform the step in `directory`. An error is written to `error-N.json` and raised again."""
    out = directory.parent
    try:
        step, inputs = read_step((directory / STEP).read_text(encoding="utf-8"))
        check_same(step.to_json(inputs), lambda *_: "it performs another stage")
        if process_count() != step.compute.processes:
            raise ConfigError(
                f"the launcher started {process_count()} connected processes, but the recipe asks for "
                f"{step.compute.processes}: launch as many; deploy/accelerate/cpu-2.yaml is an example"
            )
        figures = step.perform(out, Journal(out) if process_index() == 0 else ReadOnlyJournal(out), inputs)
    except Exception as error:
        write_json(directory / ERROR.format(process_index()), error_record(error))
        raise
    on_main(write_json, directory / FIGURES, figures)


def error_record(error: Exception) -> dict[str, object]:
    """An error as the launcher reads it: its message, its class, and `tells`, a rank of how informative it is: 2 for an
    error of this process, 1 for a report of another process's error, 0 for a lost connection."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ in (errors.__name__, "builtins")]
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__)
    return {
        "kind": kinds[0].__name__,
        "message": str(error) if isinstance(error, RLHFError) else f"{type(error).__name__}: {error}",
        "tells": 0 if CONNECTION in str(error) else 1 if any(isinstance(cause, OtherFailed) for cause in chain) else 2,
    }


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RLHFError as failure:
        sys.exit(f"process {process_index()}: {failure}")
