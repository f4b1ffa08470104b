"""A training stage in several processes: started by `accelerate launch`, heard while they work, and never left behind.

    the flow's process ── accelerate launch ── python -m alignment.launched, once a process

The launcher has a session of its own and is tied to the flow's process, and the processes to the launcher
(`alignment.tether`): where one is killed, the kernel kills those below. Whatever else ends the work, an error, a
cancelled flow run or Ctrl-C, ends them politely first. What they print goes to `home/logs/STAGE-KEY.log` and from there
to the flow's log; what the main process measures goes to the stage's journal, and from there to who listens to it.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from alignment import errors
from alignment.errors import RLHFError, TrainingError
from alignment.jobs import Job
from alignment.journal import Journal
from flows.compute import ComputeConfig, launch_file
from flows.stack import home_directory

log = logging.getLogger(__name__)
DIRECTORY = "launch"  # in the stage's directory, while it works
POLL_SECONDS = 0.5
GRACE_SECONDS = 6.0  # twice this, and everything is gone
LAST_LINES, REMEMBERED_LINES = 15, 1000
LAUNCHER_SAYS = "failed (exitcode"  # what comes after this line is its own traceback


class Followed:
    """A file to which others write: what is new in it, line by line. One that was replaced is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path, self._file_id, self._read = path, 0, 0

    def lines(self) -> list[str]:
        """The lines that were completed since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            if os.fstat(file.fileno()).st_ino != self._file_id:
                self._file_id, self._read = os.fstat(file.fileno()).st_ino, 0
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")
        self._read += len(whole[0]) + len(whole[1])
        return whole[0].decode("utf-8", "replace").splitlines()


def launch(job: Job, compute: ComputeConfig, out: Path, journal: Journal) -> Mapping[str, float]:
    """Do a job's work in `out` in the processes of `compute`; returns its figures.

    An error of a process is raised here as the kind of error that it was there; TrainingError stands for what is none
    of ours, or ended without a word.
    """
    told = launch_file(compute)
    place = out / DIRECTORY
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    (place / "accelerate.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    log_file = home_directory() / "logs" / f"{out.name.removesuffix('.partial')}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    said = Followed(log_file)
    said.lines()  # of an earlier attempt
    child = _start(place, log_file, job.processes)
    try:
        heard = _listen(child, said, journal)
    finally:
        _end(child)
    if child.returncode != 0:
        raise _failure(place, log_file, heard)
    figures: dict[str, float] = json.loads((place / "figures.json").read_text(encoding="utf-8"))
    shutil.rmtree(place)
    return figures


def _start(place: Path, log_file: Path, processes: int) -> subprocess.Popen[bytes]:
    """The launcher, in a session of its own. The thread that starts it must outlive it: it is tied to that one."""
    tied = [sys.executable, "-m", "alignment.tether", str(os.getpid())]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(place / "accelerate.yaml")]
    work = ["--main_process_port", "0", "-m", "alignment.launched", str(place)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with log_file.open("ab") as output:
        return subprocess.Popen(
            [*tied, *launcher, *work], env={"OMP_NUM_THREADS": threads, **os.environ}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _listen(child: subprocess.Popen[bytes], said: Followed, journal: Journal) -> Sequence[str]:
    """Pass on what is said and measured until the launcher has ended; returns the last lines that were said."""
    measured, heard = Followed(journal.metrics_file), deque[str](maxlen=REMEMBERED_LINES)
    ended = False
    while not ended:
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        ended = child.returncode is not None
        for line in said.lines():
            log.info("%s", line)
            heard.append(line)
        for line in measured.lines():
            journal.pass_on(json.loads(line))
    return list(heard)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the launcher and all below it: politely, and after GRACE_SECONDS for good."""
    if child.poll() is not None:
        return
    family = psutil.Process(child.pid).children(recursive=True)
    for sign in (signal.SIGTERM, signal.SIGKILL):  # told to end, the launcher ends its processes
        os.killpg(child.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            break
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=GRACE_SECONDS)
    child.wait()


def _failure(place: Path, log_file: Path, said: Sequence[str]) -> RLHFError:
    """The error of the process that failed first, in its words, with the last lines that were said as a note."""
    end = next((n for n, line in enumerate(said) if LAUNCHER_SAYS in line), len(said))
    last = "\n".join(said[: end + 1][-LAST_LINES:])
    where = f"all that the processes said is in {log_file}"
    notes: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("error-*.json"))
    ]
    nothing: dict[str, Any] = {"tells": 0}
    note = max(notes, key=lambda note: int(note["tells"]), default=nothing)
    if note["tells"] > 0:
        error: RLHFError = getattr(errors, note["kind"], TrainingError)(f"{note['message']} ({where})")
        error.add_note(last)
        return error
    return TrainingError(
        "a process, or `accelerate launch` itself, ended without saying why; exit code -9 is what memory that runs out "
        f"looks like, and then fewer processes or smaller batches help; {where}:\n{last}"
    )
