"""A training stage in several processes: started by `accelerate launch`, with their output in the flow's log.

    the flow's process ── accelerate launch ── python -m alignment.worker, once a process

The launcher has its own session and is tied to the flow's process, and the workers to the launcher
(`alignment.distributed.parent_death`): if a parent is killed, the kernel kills its children. An error, a cancelled flow
run or Ctrl-C terminates them with SIGTERM first. Their output goes to `home/logs/STAGE-KEY.log` and from there to the
flow's log; the main process writes metrics into the stage's `metrics.jsonl`, as a single process does.
"""

import builtins
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml

from alignment import errors
from alignment.artifacts import write_json
from alignment.errors import TrainingError
from alignment.journal import Journal
from alignment.stage import Figures, Step
from flows.home import home_directory
from flows.recipe.compute import launch_options
from flows.stack.services import SAFE_PATH
from labeling.child_environment import child_environment

log = logging.getLogger(__name__)
STEP_FILE, CONFIG_FILE = "step.json", "accelerate.yaml"
ANNOUNCEMENT = "launch.json"  # in the home: what other machines take part in
DIRECTORY = "launch"  # in the stage's directory, while it runs
POLL_SECONDS = 0.5
GRACE_SECONDS = 6.0  # after twice this time all processes have ended
LAST_LINES, REMEMBERED_LINES = 15, 1000
LAUNCHER_FAILURE = "failed (exitcode"  # the lines after this one are the launcher's own traceback


def launch(step: Step, out: Path, journal: Journal, inputs: Mapping[str, Path]) -> Figures:
    """Run a step in `out` with the processes of its `compute`; returns its figures.

    An error of a process is raised here with its original type; a process that ended without an error message raises a
    TrainingError.
    """
    options = launch_options(step.compute)
    directory = out / DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / STEP_FILE).write_text(step.to_json(inputs), encoding="utf-8")
    (directory / CONFIG_FILE).write_text(yaml.safe_dump(options), encoding="utf-8")
    log_file = home_directory() / "logs" / f"{out.name.removesuffix('.partial')}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with _announced(directory, options), log_file.open("ab") as output:
        log_offset = output.tell()  # the end of earlier attempts
        child = start_launcher(directory, output, options)
        try:
            log_lines = _stream_log(child, log_file, log_offset)
        finally:
            terminate(child)
    if child.returncode != 0:
        raise _failure(directory, log_file, log_lines)
    figures: dict[str, float] = json.loads((directory / "figures.json").read_text(encoding="utf-8"))
    shutil.rmtree(directory)
    return figures


@contextmanager
def _announced(directory: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Announce the launch to the other machines, if there are any, for as long as it lasts."""
    if options["num_machines"] == 1:
        yield
        return
    file = home_directory() / ANNOUNCEMENT
    write_json(file, {"id": uuid.uuid4().hex, "directory": str(directory)})
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def start_launcher(directory: Path, output: BinaryIO, options: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start the launcher in its own session. It is tied to the calling thread, which must outlive it."""
    tether = [sys.executable, "-P", "-m", "alignment.distributed.parent_death", str(os.getpid())]
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(directory / CONFIG_FILE)]
    machine = ["--machine_rank", str(options["machine_rank"])]
    port = ["--main_process_port", str(options.get("main_process_port", 0))]  # 0: any that is free
    worker = [*machine, *port, "-m", "alignment.worker", str(directory)]
    threads = str(max(1, (os.cpu_count() or 1) * options["num_machines"] // options["num_processes"]))
    return subprocess.Popen(
        [*tether, *launcher, *worker],
        env={"OMP_NUM_THREADS": threads, **SAFE_PATH, **child_environment("training", os.environ)},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _stream_log(child: subprocess.Popen[bytes], log_file: Path, offset: int) -> Sequence[str]:
    """Forward the log from `offset` until the launcher has ended; returns the last lines."""
    last_lines = deque[str](maxlen=REMEMBERED_LINES)
    with log_file.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(offset)
        rest, ended = "", False
        while not ended:
            with suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
            ended = child.returncode is not None
            *lines, rest = (rest + stream.read()).split("\n")
            for line in lines:
                log.info("%s", line)
            last_lines.extend(lines)
    return list(last_lines)


def terminate(child: subprocess.Popen[bytes]) -> None:
    """Terminate the launcher and its descendants: SIGTERM, and SIGKILL after GRACE_SECONDS."""
    if child.poll() is not None:
        return
    descendants = psutil.Process(child.pid).children(recursive=True)
    for sign in (signal.SIGTERM, signal.SIGKILL):  # on SIGTERM the launcher ends its processes
        os.killpg(child.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            break
    for process in descendants:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(descendants, timeout=GRACE_SECONDS)
    child.wait()


def _failure(directory: Path, log_file: Path, log_lines: Sequence[str]) -> Exception:
    """The error of the process that failed first, with the last lines of the log as a note."""
    end = next((n for n, line in enumerate(log_lines) if LAUNCHER_FAILURE in line), len(log_lines))
    last_lines = "\n".join(log_lines[: end + 1][-LAST_LINES:])
    where = f"the full log is {log_file}"
    notes: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("error-*.json"))
    ]
    nothing: dict[str, Any] = {"tells": 0}
    note = max(notes, key=lambda note: int(note["tells"]), default=nothing)
    if note["tells"] > 0:
        error = _rebuild_error(note["kind"], f"{note['message']} ({where})")
        error.add_note(last_lines)
        return error
    return TrainingError(
        "a process, or `accelerate launch` itself, ended without an error message; exit code -9 usually means out of "
        f"memory: use fewer processes or smaller batches; {where}:\n{last_lines}"
    )


def _rebuild_error(kind: str, message: str) -> Exception:
    """An error of this type, ours or a built-in one, with this message."""
    error_type = getattr(errors, kind, None) or getattr(builtins, kind)
    try:
        error: Exception = error_type(message)
    except TypeError:  # a type that needs more arguments than the message
        error = RuntimeError(f"{kind}: {message}")
    return error
