"""One of the processes of a training stage: `accelerate launch … -m alignment.worker OUT/launch` starts all of them.

The directory holds `step.json`. Each process does the step's work; the main one alone writes to OUT and leaves
`figures.json`. A process that fails leaves `error-N.json`, and the launcher ends the others.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import PartialState
from matplotlib.figure import Figure

from alignment import errors
from alignment.artifacts import write_json
from alignment.distributed.collectives import OtherFailed, on_main, process_count, process_index
from alignment.distributed.parent_death import TIED_TO, tie
from alignment.errors import ConfigError, RLHFError
from alignment.journal import Journal
from alignment.stages import read_step

CONNECTION = "gloo/transport"  # where torch says that its error comes from when another process has gone
STEP, FIGURES, ERROR = "step.json", "figures.json", "error-{}.json"


class Unwritten(Journal):
    """The journal of a process that is not the main one: it reads what the main one wrote, and writes nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """The main process logs the same."""

    def rewind(self, step: int) -> None:
        """The main process does it."""

    def figure(self, name: str, figure: Figure) -> Path:
        """Where the main process saves it."""
        return self.directory / "figures" / f"{name}.png"

    def note(self, name: str, lines: object) -> None:
        """The main process notes the same."""


def main(place: Path) -> None:
    """This process from its start to its end."""
    tie(int(os.environ[TIED_TO]))
    state = PartialState(cpu=True)
    perform(place)
    state.destroy_process_group()


def perform(place: Path) -> None:
    """Do this process's part of the step in `place`; raises what the work raises, once it is noted."""
    step, inputs = read_step((place / STEP).read_text(encoding="utf-8"))
    out = place.parent
    try:
        if process_count() != step.compute.processes:
            raise ConfigError(
                f"the launcher started {process_count()} processes that find each other, and "
                f"{step.compute.processes} were asked for; deploy/accelerate/cpu-2.yaml is a launch file that does it"
            )
        figures = step.perform(out, Journal(out) if process_index() == 0 else Unwritten(out), inputs)
    except Exception as error:
        write_json(place / ERROR.format(process_index()), noted(error))
        raise
    on_main(write_json, place / FIGURES, figures)


def noted(error: Exception) -> dict[str, object]:
    """An error for whoever started this process: its words, the kind of error it is, and how much it `tells`: 2 for an
    error of this process, 1 for what it heard of another one's, 0 where the other was suddenly gone."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ in (errors.__name__, "builtins")]
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__)
    return {
        "kind": kinds[0].__name__,
        "message": str(error) if isinstance(error, RLHFError) else f"{type(error).__name__}: {error}",
        "tells": 0 if CONNECTION in str(error) else 1 if any(isinstance(one, OtherFailed) for one in chain) else 2,
    }


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RLHFError as failure:
        sys.exit(f"process {process_index()}: {failure}")
