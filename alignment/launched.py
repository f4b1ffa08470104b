"""One of the processes of a training stage: `accelerate launch … -m alignment.launched OUT/launch` starts all of them.

The directory holds `job.json`. Each process does the job's work; the main one alone writes to OUT and leaves
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
from alignment.errors import ConfigError, RLHFError
from alignment.jobs import Job, train
from alignment.journal import Journal
from alignment.processes import OtherFailed, on_main, process_count, process_index
from alignment.tether import TIED_TO, tie

JOB, FIGURES, ERROR = "job.json", "figures.json", "error-{}.json"


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
    """Do this process's part of the job in `place`; raises what the work raises, once it is noted."""
    tie(int(os.environ[TIED_TO]))
    job = Job.model_validate_json((place / JOB).read_text(encoding="utf-8"))
    state = PartialState(cpu=True)
    try:
        if process_count() != job.processes:
            raise ConfigError(
                f"the launcher started {process_count()} processes that find each other, and {job.processes} were "
                "asked for; see deploy/accelerate/cpu-2.yaml for a launch file that does"
            )
        out = place.parent
        figures = train(job, out, Journal(out) if process_index() == 0 else Unwritten(out))
    except Exception as error:
        write_json(place / ERROR.format(process_index()), noted(error))
        raise
    on_main(write_json, place / FIGURES, figures)
    state.destroy_process_group()


def noted(error: Exception) -> dict[str, object]:
    """An error for whoever started this process: its words, the kind of error it is, and whether it came from another
    process, which tells more."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__)
    return {
        "kind": kinds[0] if kinds else "",
        "message": str(error) if kinds else f"{type(error).__name__}: {error}",
        "echo": any(isinstance(one, OtherFailed) for one in chain),
    }


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RLHFError as failure:
        sys.exit(f"process {process_index()}: {failure}")
