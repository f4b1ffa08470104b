"""Flow runs in Prefect: queries and state changes. All calls to Prefect's API about runs are here."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import SetStateStatus, filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOrder, EventResourceFilter
from prefect.states import AwaitingRetry

from alignment.errors import ConfigError, RLHFError

POOL = "train"
FLOWS = ("rlhf", "rlhf-stage", "rlhf-sweep")  # started by `rlhf run` and `rlhf sweep`, also in a terminal
HEARTBEAT_SECONDS = 30  # PREFECT_FLOWS_HEARTBEAT_FREQUENCY of every job
SILENCE = timedelta(seconds=3 * HEARTBEAT_SECONDS)  # after which a run is dead
AT_MOST = 200  # runs in one query
BY_WATCHER = "watch: "  # how the watcher's messages begin
STARTING = ("Pending", "Submitting", "InfrastructurePending")
WAITS_FOR_A_SLOT = ("Late", "AwaitingConcurrencySlot")


class StateRefused(RLHFError):
    """Prefect rejected a state."""


def runs_in_state(prefect: SyncPrefectClient, *names: str, pool: str = POOL) -> list[FlowRun]:
    """The runs of a pool in these states, the newest first; with pool "" those started in a terminal."""
    state = filters.FlowRunFilter(state=filters.FlowRunFilterState(name=filters.FlowRunFilterStateName(any_=[*names])))
    sort = FlowRunSort.EXPECTED_START_TIME_DESC
    if pool:
        pools = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool]))
        return prefect.read_flow_runs(flow_run_filter=state, work_pool_filter=pools, sort=sort, limit=AT_MOST)
    flows = filters.FlowFilter(name=filters.FlowFilterName(any_=[*FLOWS]))
    runs_of_flows = prefect.read_flow_runs(flow_run_filter=state, flow_filter=flows, sort=sort, limit=AT_MOST)
    return [run for run in runs_of_flows if run.deployment_id is None]


def find_run(prefect: SyncPrefectClient, name: str) -> FlowRun:
    """The run with this id or name. Raises ConfigError when there is none or more than one."""
    try:
        condition = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[UUID(name)]))
    except ValueError:
        condition = filters.FlowRunFilter(name=filters.FlowRunFilterName(any_=[name]))
    runs = prefect.read_flow_runs(flow_run_filter=condition, limit=AT_MOST)
    if not runs:
        raise ConfigError(f"there is no run {name!r}; `rlhf status` lists those that wait, run or died")
    if len(runs) > 1:
        candidates = ", ".join(f"{run.id} ({run.state_name})" for run in runs)
        raise ConfigError(f"{len(runs)} runs are called {name!r}; name it by its id: {candidates}")
    return runs[0]


def history(prefect: SyncPrefectClient, run: FlowRun) -> list[State]:
    """All states of a run, the oldest first."""
    return sorted(prefect.read_flow_run_states(run.id), key=lambda state: state.timestamp)


def last_heartbeat(prefect: SyncPrefectClient, run: FlowRun) -> datetime | None:
    """The time of a run's last heartbeat; None before the first."""
    heartbeats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        order=EventOrder.DESC,
    )
    events = prefect.read_events(heartbeats, limit=1).events
    return events[0].occurred if events else None


def restarts(states: Sequence[State]) -> int:
    """How often the watcher restarted a run since a person did, or since it resumed after waiting."""
    scheduled = [state for state in states if state.is_scheduled() and state.name not in WAITS_FOR_A_SLOT]
    return len([*takewhile(is_watcher_restart, reversed(scheduled))])


def is_watcher_restart(state: State) -> bool:
    """Whether a state is a restart of a dead run by the watcher."""
    return state.name == "AwaitingRetry" and (state.message or "").startswith(BY_WATCHER)


def set_state(prefect: SyncPrefectClient, run: FlowRun, state: State, *, force: bool = False) -> None:
    """Set the state of a run. Raises StateRefused with Prefect's reason when it is rejected."""
    response = prefect.set_flow_run_state(run.id, state, force=force)
    if response.status != SetStateStatus.ACCEPT:
        reason = getattr(response.details, "reason", None) or response.status.value
        raise StateRefused(f"{run.name} cannot become {state.name}: {reason}")


def resume(prefect: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """Resume a suspended run. Raises ConfigError for a run that is not suspended."""
    if run.state_name != "Suspended":
        hint = "; `rlhf retry` restarts it" if run.state is not None and run.state.is_final() else ""
        raise ConfigError(f"{run.name} is {run.state_name} and does not wait for anything{hint}")
    set_state(prefect, run, State(type=StateType.SCHEDULED, name="Resuming", message=message))


def restart(prefect: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """Schedule an ended run again; it resumes after its finished stages. Raises ConfigError."""
    if run.deployment_id is None:
        raise ConfigError(f"{run.name} was started in a terminal: the same `rlhf run` command resumes it")
    if run.state is None or not run.state.is_final():
        hint = "`rlhf resume` resumes it" if run.state_name == "Suspended" else "it has not ended"
        raise ConfigError(f"{run.name} is {run.state_name}: {hint}")
    set_state(prefect, run, AwaitingRetry(message=message))
