"""A seeded series of SIGKILLs to a pipeline and its servers, timed by progress."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol

import psutil
from pydantic import BaseModel, ConfigDict

from flows.stack import processes, stack
from flows.stack.processes import Process
from flows.stack.services import NAMES
from tests.chaos import warm
from tests.chaos.progress import (
    BEGUN,
    CHECKPOINT,
    PUBLISHED,
    REGISTERING,
    RELEASE,
    STATES,
    UPLOADING,
    WORKED,
    Progress,
)
from tests.labeling.helpers import REPOSITORY

Victim = Literal["flow", "worker", "flow and worker", "prefect", "mlflow", "label-studio", "machine"]
IN_A_TERMINAL: tuple[Victim, ...] = (
    *("flow", "flow", "mlflow", "flow", "prefect", "label-studio", "flow", "mlflow", "machine"),
)
DEPLOYED: tuple[Victim, ...] = ("worker", "flow", "flow and worker", "prefect", "worker", "flow and worker", "machine")
FLOWS, WORKERS = ("flow", "flow and worker", "machine"), ("worker", "flow and worker", "machine")
LONG = {"pretrain": 3.0, "sft": 3.0, "labeling": 6.0, "reward": 1.5, "ppo": 1.5, "evaluate": 2.0}  # seconds of work
SHORT_SECONDS = 0.3
WAIT_SECONDS = 900.0
LOOK_SECONDS = 0.25  # between two looks whether the pipeline ended
FAILURES_IN_A_ROW = 4  # of a flow that nobody kills: servers that were killed may fail it, but not for ever


class Plan(BaseModel):
    """A kill to come: whom, and how many seconds after which moment. `whole` takes a server's children along."""

    model_config = ConfigDict(frozen=True)

    victim: Victim
    stage: str
    state: int
    delay: float
    whole: bool = True


class Kill(BaseModel):
    """A kill that was done: whom, when, and where the pipeline was."""

    model_config = ConfigDict(frozen=True)

    number: int
    seconds: float
    victim: Victim
    whole: bool
    aimed_at: str
    stage: str
    state: str


def plan(count: int, seed: int, progress: Progress, victims: Sequence[Victim] = IN_A_TERMINAL) -> list[Plan]:
    """`count` kills, spread over all stages (more where work is long) and over what happens within them, in order."""
    rng = random.Random(f"storm:{seed}")
    places = [*progress.stages, RELEASE, *LONG]
    chosen = (places * (count // len(places))) + rng.sample(places, count % len(places))
    whom = [victims[i % len(victims)] for i in range(count)]
    rng.shuffle(whom)
    found = [_one(victim, stage, rng, progress) for victim, stage in zip(whom, chosen, strict=True)]
    order = [*progress.stages, RELEASE]
    return sorted(found, key=lambda one: (order.index(one.stage), one.state))


def _one(victim: Victim, stage: str, rng: random.Random, progress: Progress) -> Plan:
    states = [BEGUN, BEGUN]
    if stage != RELEASE:
        states += [WORKED, UPLOADING, PUBLISHED]
    if stage in progress.models:
        states += [CHECKPOINT, REGISTERING, REGISTERING]
    state = rng.choice(states)
    longest = LONG.get(stage, SHORT_SECONDS) if state in (BEGUN, CHECKPOINT) else SHORT_SECONDS
    return Plan(victim=victim, stage=stage, state=state, delay=rng.uniform(0, longest), whole=rng.random() < 0.7)


def environment(home: Path) -> dict[str, str]:
    """That of pipelines in processes of their own: this code, wherever they work, one thread, and the servers of a
    home."""
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return os.environ | stack.connect(home).environment() | told


class Run(Protocol):
    """A pipeline that can be killed and goes on."""

    log: Path
    starts: int

    def start(self) -> None:
        """Begin, or go on."""

    def ended(self) -> int | None:
        """The exit code, None while it works, -9 when it was killed."""

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""

    def kill_worker(self) -> None:
        """SIGKILL to the worker that started it, if there is one."""

    def hold(self) -> AbstractContextManager[None]:
        """While it stands still."""

    def close(self) -> None:
        """No more starts."""


class TerminalRun:
    """The pipeline in a process of its own, begun again with the same words each time (`tests.chaos.warm`)."""

    def __init__(self, home: Path, recipe: Path, overrides: Sequence[str]) -> None:
        self.log, self._code = home / "flow.log", home / "flow.code"
        options = [word for override in overrides for word in ("--set", override)]
        self._process: psutil.Process | None = None
        self._parent = subprocess.Popen(
            [sys.executable, warm.__file__, str(self.log), "--home", str(home), "run", str(recipe), *options],
            env=environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()
        self.starts = 0

    def _answer(self) -> str:
        assert self._parent.stdout is not None
        told = self._parent.stdout.readline()
        assert told, "the process that becomes the pipeline ended"
        return told.strip()

    def start(self) -> None:
        """Begin, or go on."""
        self.starts += 1
        self._code.unlink(missing_ok=True)
        assert self._parent.stdin is not None
        self._parent.stdin.write("go\n")
        self._parent.stdin.flush()
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(int(self._answer()))

    def ended(self) -> int | None:
        """The exit code, None while it works, -9 when it was killed."""
        if self._process is not None and self._process.is_running():
            return None
        return int(self._code.read_text()) if self._code.exists() else -signal.SIGKILL

    def kill(self) -> None:
        """SIGKILL to the process and all its children."""
        if self._process is not None and self._process.is_running():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def kill_worker(self) -> None:
        """There is none."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While it stands still, with its children."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.is_running():
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """No more starts."""
        self.kill()
        self._parent.kill()
        self._parent.wait()


class Storm:
    """Kills what the plans say, and starts again what was killed."""

    def __init__(self, home: Path, run: Run, progress: Progress) -> None:
        self._home, self._run, self._progress = home, run, progress
        self._began = time.monotonic()
        self._mender = ThreadPoolExecutor(1)
        self._mending: Future[object] | None = None
        self._failures, self._looked = 0, 0.0
        self.failed = 0
        self.kills: list[Kill] = []

    def endure(self, plans: Sequence[Plan]) -> None:
        """All kills, one after the other; returns when the pipeline came to its end after them."""
        self._run.start()
        for one in plans:
            self._wait_for(one)
            with self._run.hold():  # or the place would be long past when the server of the kill before is back
                self._mended()
                self._kill(one)
        while self._run.ended() != 0:
            self._keep_going()
            time.sleep(0.1)
        self._mended()
        self._mender.shutdown()

    @property
    def seconds(self) -> float:
        """Since the storm began."""
        return time.monotonic() - self._began

    def _wait_for(self, one: Plan) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._progress.reached((one.stage, one.state)):
            assert time.monotonic() < deadline, f"{one} did not come within {WAIT_SECONDS} s\n{self._told()}"
            self._keep_going()
            time.sleep(0.004)
        if self._run.ended() is not None:
            self._keep_going(even_when_done=True)
        time.sleep(one.delay)

    def _keep_going(self, *, even_when_done: bool = False) -> None:
        """Begin the pipeline again when it has ended and nobody killed it, which a lost server may do."""
        if time.monotonic() - self._looked < LOOK_SECONDS and not even_when_done:
            return
        self._looked = time.monotonic()
        ended = self._run.ended()
        if ended is None or (ended == 0 and not even_when_done):
            return
        if ended != 0:
            self._failures, self.failed = self._failures + 1, self.failed + 1
            assert self._failures < FAILURES_IN_A_ROW, f"it fails again and again\n{self._told()}"
        self._mended()
        self._run.start()

    def _kill(self, one: Plan) -> None:
        stage, state = self._progress.here()
        servers = {name: server.process for name, server in stack.read_state(self._home).servers.items()}
        if one.victim in FLOWS:
            self._run.kill()
        if one.victim in WORKERS:
            self._run.kill_worker()
        for name in NAMES:
            if one.victim in (name, "machine") and (process := servers.get(name)) is not None:
                kill_server(process, one.whole)
        self.kills.append(
            Kill(
                number=len(self.kills) + 1,
                seconds=round(self.seconds, 1),
                victim=one.victim,
                whole=one.whole,
                aimed_at=f"{one.stage} {STATES[one.state]} +{one.delay:.2f} s",
                stage=stage,
                state=STATES[state],
            )
        )
        self._failures = 0
        if one.victim in (*NAMES, "machine"):
            self._mending = self._mender.submit(stack.up, self._home)
        if one.victim in (*FLOWS, *WORKERS):
            self._mended()
            self._run.start()

    def _mended(self) -> None:
        """Wait until the servers are up again. Raises StackError when they do not come."""
        if self._mending is not None:
            self._mending.result()
            self._mending = None

    def _told(self) -> str:
        return self._run.log.read_text(encoding="utf-8", errors="replace")[-6000:]


def kill_server(process: Process, whole: bool) -> None:
    """SIGKILL to a server with its children, or to the first process alone, whose children live on.

    Returns when it is gone: one that is still dying may be taken for a living one by whoever starts servers again.
    """
    try:
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it is being started again and the number is of the one before
    while processes.is_alive(process):
        time.sleep(0.01)


def table(kills: Sequence[Kill], by: Literal["victim", "stage", "state"]) -> dict[str, int]:
    """How many kills by what."""
    return dict(Counter(getattr(kill, by) for kill in kills).most_common())
