"""A worker for the pools of `rlhf deploy` that runs the flows of this project and nothing else.

    python -P -m flows.deployments.worker --pool train --name train-worker

Whoever may write to Prefect's API decides what a worker of Prefect runs: pull steps, commands, directories and
variables of a deployment are programs, and so is the result in a run's state. This one reads the deployment once,
refuses all of these, and starts the flow itself, so that what was checked is what runs. A refused run is CRASHED, and
its state says why.
"""

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.schemas.objects import Flow as FlowRecord
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow
from prefect.utilities.processutils import command_to_string, setup_signal_handlers_worker
from prefect.workers import process
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from alignment.errors import ConfigError
from flows.deployments.deploy import HERE, SERVER_FAILS, SET_DIRECTORY, read_file
from flows.deployments.watcher import HEARTBEATS
from flows.home import home_directory
from flows.results import refuse_results
from flows.stack.listeners import guard_own_servers

VARIABLES = {HEARTBEATS}  # which a deployment may set
HEARTBEAT_SECONDS = "[3-9][0-9]|[1-9][0-9]{2,3}"  # Prefect takes no less than 30


class Refused(ConfigError):
    """A run that asks for more than a flow of this project."""


class Job(ProcessJobConfiguration):
    """The process of a run."""

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: FlowRecord | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Set command, directory and variables. Raises Refused."""
        if deployment is None:
            raise Refused("the run has no deployment: start it from a deployment that `rlhf deploy` creates")
        check_job(self.command, self.working_dir, self.env)
        entrypoint = check_entrypoint(deployment.entrypoint)
        check_steps(deployment.pull_steps or [])
        if deployment.storage_document_id or deployment.infrastructure_document_id:
            raise Refused("the deployment has a block for storage or infrastructure: `rlhf deploy` sets none")
        if flow_run.state is not None and flow_run.state.is_final():
            raise Refused(f"the run is {flow_run.state.name} already: `rlhf retry` restarts it")
        self.working_dir = None  # an empty temporary directory: Prefect reads its configuration where it starts
        self.command = command_to_string([sys.executable, "-P", "-m", "flows.deployments.engine"])
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint  # else Prefect reads the deployment again


class Worker(ProcessWorker):
    """Prefect's process worker with jobs that were checked. No failing server ends it, and so none of its runs."""

    job_configuration = Job

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Look for runs that are due; none while Prefect's server fails."""
        runs: list[FlowRun] = []
        with self._outlives("could not look for runs"):
            runs += await super().get_and_submit_flow_runs()
        return runs

    async def _sync_and_initialize(self) -> None:
        with self._outlives("could not report to its pool"):
            await super()._sync_and_initialize()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Submit a run. One that the server's failure prevents stays scheduled, and is submitted at a later look."""
        try:
            await super()._submit_run(flow_run)
        except httpx.HTTPError as error:
            self._note(f"could not submit {flow_run.name}", error)
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)

    async def _cancel_run(self, flow_run_id: UUID) -> None:
        try:
            await super()._cancel_run(flow_run_id)
        except httpx.HTTPError as error:
            self._note(f"could not cancel the run {flow_run_id}", error)

    @contextmanager
    def _outlives(self, what: str) -> Iterator[None]:
        """Log failures of Prefect's server, after some minutes of which Prefect's own worker ends, with its runs."""
        try:
            yield
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < SERVER_FAILS:
                raise
            self._note(what, error)

    def _note(self, what: str, error: httpx.HTTPError) -> None:
        self._logger.warning("the worker %s, and tries again: %s", what, str(error).partition("\n")[0][:200])

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Prefect's own class stays the one that `--type process` means."""
        return "rlhf"


def check_job(command: str | None, directory: Path | None, variables: Mapping[str, str | None]) -> None:
    """Raise Refused for job variables, of the run, its deployment or the pool, that say what is executed."""
    if command:
        raise Refused(f"the job has a command of its own, {command!r}: remove it from the job variables")
    if directory:
        raise Refused(f"the job has a working_dir of its own, {str(directory)!r}: remove it from the job variables")
    if foreign := sorted(variables.keys() - VARIABLES):
        raise Refused(f"the job sets variables ({', '.join(foreign)}): set them where the worker is started")
    for name, value in variables.items():
        if value is None or not re.fullmatch(HEARTBEAT_SECONDS, value):
            raise Refused(f"the job sets {name} to {str(value)[:20]!r}: it must be a number of seconds from 30 to 9999")


def check_entrypoint(entrypoint: str | None) -> str:
    """The entrypoint. Raises Refused if it is none of this project's flows."""
    known = {spec.entrypoint for spec in read_file()[1]}
    if not isinstance(entrypoint, str) or entrypoint not in known:
        name = str(entrypoint)[:200]
        raise Refused(f"{name!r} is no flow of this project: run it with a worker and in a pool of its own")
    return entrypoint


def check_steps(steps: list[dict[str, object]]) -> None:
    """Raise Refused for pull steps other than ours, which sets no directory. Deployments from before may have none."""
    if steps not in ([], [{SET_DIRECTORY: {"directory": HERE}}]):
        raise Refused(
            "the deployment has pull steps, or a directory, of its own: `rlhf deploy` sets it, with absolute paths"
        )


@flow(name="no-hooks")
def no_hooks() -> None:
    """Stands for a flow of which Prefect wants the hooks."""


async def without_hooks(flow_run: FlowRun) -> Flow[[], None]:
    """Our flows have no hooks. To look for them Prefect would run the deployment's pull steps, in the worker."""
    return no_hooks


vars(process)["load_flow_from_flow_run"] = without_hooks


def main() -> None:
    """Work until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", required=True, help="the work pool; created where it is missing")
    parser.add_argument("--name", help="the name that Prefect's pages show")
    parser.add_argument("--run-once", action="store_true", help="run what is due now, and end")
    options = parser.parse_args()
    os.environ["RLHF_HOME"] = str(home_directory())  # runs work in directories of their own
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    refuse_results()
    guard_own_servers()
    worker = Worker(work_pool_name=options.pool, name=options.name)
    asyncio.run(worker.start(run_once=options.run_once, with_healthcheck=not options.run_once))


if __name__ == "__main__":
    main()
