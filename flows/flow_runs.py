"""Flow runs as Prefect has them: found, looked at, and given new states. Every question to its API is here."""

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
FLOWS = ("rlhf", "rlhf-stage")  # those that `rlhf run` starts, in a terminal too
HEARTBEAT_SECONDS = 30  # PREFECT_FLOWS_HEARTBEAT_FREQUENCY of every job
SILENCE = timedelta(seconds=3 * HEARTBEAT_SECONDS)  # after which a run is dead
AT_MOST = 200  # runs that are looked at in one go
BY_WATCHER = "watch: "  # how the watcher's messages begin
STARTING = ("Pending", "Submitting", "InfrastructurePending")
WAITS_FOR_A_SLOT = ("Late", "AwaitingConcurrencySlot")


class StateRefused(RLHFError):
    """Prefect did not take a state."""


def runs_in_state(prefect: SyncPrefectClient, *names: str, pool: str = POOL) -> list[FlowRun]:
    """The runs of a pool in states of these names, the newest first; with pool "" those that a terminal started."""
    runs = filters.FlowRunFilter(state=filters.FlowRunFilterState(name=filters.FlowRunFilterStateName(any_=[*names])))
    sort = FlowRunSort.EXPECTED_START_TIME_DESC
    if pool:
        pools = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool]))
        return prefect.read_flow_runs(flow_run_filter=runs, work_pool_filter=pools, sort=sort, limit=AT_MOST)
    flows = filters.FlowFilter(name=filters.FlowFilterName(any_=[*FLOWS]))
    found = prefect.read_flow_runs(flow_run_filter=runs, flow_filter=flows, sort=sort, limit=AT_MOST)
    return [run for run in found if run.deployment_id is None]


def find_run(prefect: SyncPrefectClient, name: str) -> FlowRun:
    """The run of an id or a name. Raises ConfigError when there is none, or more than one."""
    try:
        wanted = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[UUID(name)]))
    except ValueError:
        wanted = filters.FlowRunFilter(name=filters.FlowRunFilterName(any_=[name]))
    found = prefect.read_flow_runs(flow_run_filter=wanted, limit=AT_MOST)
    if not found:
        raise ConfigError(f"there is no run {name!r}; `rlhf status` lists those that wait, run or died")
    if len(found) > 1:
        several = ", ".join(f"{run.id} ({run.state_name})" for run in found)
        raise ConfigError(f"{len(found)} runs are called {name!r}; give the id of one: {several}")
    return found[0]


def history(prefect: SyncPrefectClient, run: FlowRun) -> list[State]:
    """All states of a run, the oldest first."""
    return sorted(prefect.read_flow_run_states(run.id), key=lambda state: state.timestamp)


def last_heartbeat(prefect: SyncPrefectClient, run: FlowRun) -> datetime | None:
    """When a run last gave a sign of life; None for one that never did."""
    asked = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        order=EventOrder.DESC,
    )
    found = prefect.read_events(asked, limit=1).events
    return found[0].occurred if found else None


def restarts(states: Sequence[State]) -> int:
    """How often the watcher has started a run again since a person did, or since it went on after waiting."""
    scheduled = [state for state in states if state.is_scheduled() and state.name not in WAITS_FOR_A_SLOT]
    return len([*takewhile(is_watcher_restart, reversed(scheduled))])


def is_watcher_restart(state: State) -> bool:
    """Whether a state is the watcher's word to start a dead run again."""
    return state.name == "AwaitingRetry" and (state.message or "").startswith(BY_WATCHER)


def set_state(prefect: SyncPrefectClient, run: FlowRun, state: State, *, force: bool = False) -> None:
    """Put a run into a state. Raises Refused, with Prefect's reason, when it is not taken."""
    answer = prefect.set_flow_run_state(run.id, state, force=force)
    if answer.status != SetStateStatus.ACCEPT:
        reason = getattr(answer.details, "reason", None) or answer.status.value
        raise StateRefused(f"{run.name} cannot become {state.name}: {reason}")


def resume(prefect: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """Let a suspended run go on. Raises ConfigError for one that is not suspended."""
    if run.state_name != "Suspended":
        what = "; `rlhf retry` starts it again" if run.state is not None and run.state.is_final() else ""
        raise ConfigError(f"{run.name} is {run.state_name} and does not wait for anything{what}")
    set_state(prefect, run, State(type=StateType.SCHEDULED, name="Resuming", message=message))


def restart(prefect: SyncPrefectClient, run: FlowRun, message: str) -> None:
    """Have a worker run an ended run again, which goes on from what is finished. Raises ConfigError."""
    if run.deployment_id is None:
        raise ConfigError(f"{run.name} was started in a terminal: the same `rlhf run` command goes on with it")
    if run.state is None or not run.state.is_final():
        what = "`rlhf resume` goes on with it" if run.state_name == "Suspended" else "it has not ended"
        raise ConfigError(f"{run.name} is {run.state_name}: {what}")
    set_state(prefect, run, AwaitingRetry(message=message))
