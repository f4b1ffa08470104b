"""The process of a run of our worker: Prefect's engine, with nothing of its API read as code.

    PREFECT__FLOW_RUN_ID=... PREFECT__FLOW_ENTRYPOINT=MODULE.FLOW python -P -m flows.deployments.engine

The worker checked the deployment and sets both variables. A run that has ended meanwhile is not started: Prefect's
engine would fetch the result that its state names.
"""

import os
import runpy
import sys
from uuid import UUID

from prefect.client.orchestration import get_client

from flows.results import refuse_results
from flows.stack.listeners import guard_own_servers


def ended(flow_run_id: UUID) -> str:
    """The name of the run's state if it is final, "" else."""
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(flow_run_id).state
    return (state.name or state.type.value) if state is not None and state.is_final() else ""


def main() -> None:
    """Run the flow, unless the run has ended."""
    refuse_results()
    guard_own_servers()
    if name := ended(UUID(os.environ["PREFECT__FLOW_RUN_ID"])):
        sys.exit(f"the run is {name} already, and is not started")
    sys.argv[1:] = []  # the engine prefers an argument to the variable
    runpy.run_module("prefect.engine", run_name="__main__")


if __name__ == "__main__":
    main()
