"""Flow runs that are suspended while people label: they hold no process and no slot until they are resumed.

Each is known by a record, `home/waiting/<flow run>.json`, in which the watcher
(`flows.deployments.watcher`) finds what it waits for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from alignment.artifacts import write_json
from flows.annotation.wait import Standing, WaitingForPeople, name_of
from flows.home import home_directory
from labeling.config import LabelingConfig

FOLDER = "waiting"


class Waiting(BaseModel):
    """A suspended run: what it waits for, and how far that was when it was last looked at. `place` has the collection,
    `artifact_id` is the table on the run's page."""

    model_config = ConfigDict(frozen=True)

    flow_run_id: str
    flow_run_name: str
    place: Path
    config: LabelingConfig
    urls: dict[str, str]
    standing: Standing
    artifact_id: str | None = None


@contextmanager
def suspended_while_people_label() -> Iterator[None]:
    """Suspend the flow run where a stage raises WaitingForPeople; resumed, the flow runs again from the top."""
    try:
        yield
        return
    except WaitingForPeople as waiting:
        stopped = waiting
    from prefect.flow_runs import suspend_flow_run

    write_waiting(remember(stopped))
    # A key of its own each time: Prefect takes a second suspension with the same key for one that is over.
    suspend_flow_run(timeout=None, key=f"{name_of(stopped.place)}#{uuid4().hex}")


def remember(stopped: WaitingForPeople) -> Waiting:
    """What the watcher needs, with the table on the run's page."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.runtime import flow_run

    waiting = Waiting(
        flow_run_id=flow_run.id,
        flow_run_name=flow_run.name,
        place=stopped.place,
        config=stopped.config,
        urls=stopped.urls,
        standing=stopped.standing,
    )
    table = create_markdown_artifact(
        markdown=as_markdown(waiting), key="waiting-for-people", description="how far the labelling is"
    )
    return waiting.model_copy(update={"artifact_id": str(table)})


def as_markdown(waiting: Waiting) -> str:
    """How far it is, where people work, and what can be done."""
    links = [f"- [{kind}]({url})" for kind, url in waiting.urls.items()]
    return (
        "\n".join(
            [
                f"**{waiting.standing.in_words(waiting.config)}**",
                "",
                "People work here:",
                "",
                *links,
                "",
                "The watcher resumes this run by itself. *Resume*, or `rlhf resume "
                f"{waiting.flow_run_name}`, goes on now with what there is.",
            ]
        )
        + "\n"
    )


def write_waiting(waiting: Waiting, home: Path | None = None) -> None:
    """Keep the record of a suspended run."""
    folder = home_directory(home) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{waiting.flow_run_id}.json", waiting.model_dump(mode="json"))


def read_waiting(home: Path | None = None) -> list[Waiting]:
    """All records, the oldest first."""
    found = sorted((home_directory(home) / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [Waiting.model_validate_json(path.read_bytes()) for path in found]


def forget_waiting(flow_run_id: str, home: Path | None = None) -> None:
    """Remove the record of a run that does not wait any more."""
    (home_directory(home) / FOLDER / f"{flow_run_id}.json").unlink(missing_ok=True)
