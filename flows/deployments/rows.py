"""Rows of `rlhf status` that need no server: this imports neither Prefect nor MLflow."""

from dataclasses import dataclass

from flows.annotation.waiting import Waiting, read_waiting


@dataclass(frozen=True)
class Row:
    """A row of a table: a pool or a run, its state, and the next step."""

    name: str
    state: str
    seen: str
    next: str = ""


def last_known() -> list[Row]:
    """The waiting runs as of the last check, for when Prefect does not answer."""
    return [Row(name=waiting.flow_run_name, state="Suspended", seen=progress(waiting)) for waiting in read_waiting()]


def progress(waiting: Waiting) -> str:
    """What is judged so far, and where."""
    return "\n".join([waiting.standing.describe(waiting.config), *waiting.urls.values()])
