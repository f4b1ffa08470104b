"""The pipeline as a deployment: a worker runs it, and whoever kills either starts the worker again.

What died is told to Prefect as the watcher tells it, but without its doubts: after a kill nobody needs to wait for the
heartbeats that stay out.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows import flow_runs
from flows.deployments.deploy import PIPELINE, TRAIN, read_file, set_up_deployment, set_up_pool
from flows.deployments.watcher import SETTLED
from flows.pipeline.flow import rlhf
from flows.recipe.schema import Recipe
from flows.stack import processes
from tests.chaos.storm import environment

AWAY = (httpx.TransportError, PrefectHTTPStatusError)
RUN_ID = "PREFECT__FLOW_RUN_ID"
NOTICE_SECONDS = 300.0


class Deployed:
    """One flow run of a deployment, with the worker that runs it. It is begun once, and goes on whatever dies."""

    def __init__(self, home: Path, recipe: Recipe) -> None:
        self._home, self._recipe = home, recipe
        self.log = home / "logs" / "worker.log"
        self._told = environment(home) | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        self._auth = self._told["PREFECT_API_AUTH_STRING"]
        self._worker: processes.Process | None = None
        self._run: UUID | None = None
        self.starts = 0

    @contextmanager
    def _prefect(self) -> Iterator[SyncPrefectClient]:
        with SyncPrefectClient(self._told["PREFECT_API_URL"], auth_string=self._auth) as client:
            yield client

    def start(self) -> None:
        """Begin; later on, see to it that a worker is there and that a run that died is started again."""
        self.starts += 1
        alone = self._worker is None or not processes.is_alive(self._worker)
        if alone:
            command = (sys.executable, "-m", "flows.deployments.worker", "--pool", TRAIN)
            self._worker = processes.launch(command, environment=self._told, directory=self._home, log=self.log)
        with self._prefect() as client:
            if self._run is None:
                self._run = self._begin(client)
            else:
                self._go_on(client, alone)

    def _begin(self, client: SyncPrefectClient) -> UUID:
        pools, specs = read_file()
        set_up_pool(client, TRAIN, pools[TRAIN], 1)
        told = {"name": "storm", "parameters": {"recipe": self._recipe.model_dump(mode="json")}}
        spec = next(one for one in specs if one.name == PIPELINE).model_copy(update=told)
        with temporary_settings({PREFECT_API_URL: self._told["PREFECT_API_URL"], PREFECT_API_AUTH_STRING: self._auth}):
            set_up_deployment(spec)
        deployment = client.read_deployment_by_name(f"{rlhf.name}/storm")
        return client.create_flow_run_from_deployment(deployment.id).id

    def _go_on(self, client: SyncPrefectClient, alone: bool) -> None:
        """A worker that lives notices by itself that its flow died; of a flow that died with it nobody knows."""
        deadline = time.monotonic() + NOTICE_SECONDS
        while (run := self._state(client)).state_name in ("Running", "Pending") and not self.pids():
            if alone:
                flow_runs.set_state(client, run, Crashed(message="killed"), force=True)
            assert time.monotonic() < deadline, "the worker did not notice that its flow died"
            time.sleep(0.5)
        if run.state_name in ("Crashed", "Failed"):
            assert run.state is not None
            if not alone:  # it reports a killed process twice, and the second report would hit the restart
                time.sleep(max(0.0, (run.state.timestamp + SETTLED - datetime.now(UTC)).total_seconds()))
            flow_runs.restart(client, run, "the storm is over")

    def _state(self, client: SyncPrefectClient) -> FlowRun:
        assert self._run is not None
        return client.read_flow_run(self._run)

    def ended(self) -> int | None:
        """0 once the run is completed, 1 when it failed, -9 when it crashed or nobody works on it any more."""
        if self._run is None:
            return None
        try:
            with self._prefect() as client:
                name = self._state(client).state_name
        except AWAY:
            return None
        if name == "Completed":
            return 0
        if name == "Failed":
            return 1
        return -signal.SIGKILL if name == "Crashed" else None

    def pids(self) -> list[int]:
        """The processes that work on the run, whoever their parents are."""
        return [one.pid for one in psutil.process_iter() if _variable(one, RUN_ID) == str(self._run)]

    def kill(self) -> None:
        """SIGKILL to the flow and its children; the worker sees it and lives on."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_until(lambda: not self.pids())

    def kill_worker(self) -> None:
        """SIGKILL to the worker; its flow lives on without it."""
        if self._worker is not None and processes.is_alive(self._worker):
            worker = self._worker
            os.kill(worker.pid, signal.SIGKILL)
            _wait_until(lambda: not processes.is_alive(worker))

    def hold(self) -> AbstractContextManager[None]:
        """It works on: several processes, of which the worker starts new ones, do not stand still together."""
        return nullcontext()

    def close(self) -> None:
        """Nobody works any more."""
        self.kill_worker()
        self.kill()


def _wait_until(dead: Callable[[], bool]) -> None:
    """A killed process takes a moment to die."""
    deadline = time.monotonic() + NOTICE_SECONDS
    while not dead():
        assert time.monotonic() < deadline, "a killed process lives on"
        time.sleep(0.05)


def _variable(process: psutil.Process, name: str) -> str | None:
    with suppress(psutil.Error, ProcessLookupError):
        return process.environ().get(name)
    return None
