"""Records of suspended flow runs: one file `home/waiting/FLOW_RUN.json` each.

The watcher (`flows.deployments.watcher`) and `rlhf status` read from it what the run waits for.
"""

from datetime import datetime
from pathlib import Path

from alignment.artifacts import write_json
from alignment.records import Record
from flows.home import home_directory
from labeling.config import LabelingConfig

FOLDER = "waiting"


class Standing(Record):
    """Progress of a collection. `agreement` is measured once the quota is reached, if the recipe sets a minimum.

    `reason` is why the run can continue, "" while it cannot.
    """

    done: int
    needed: int
    agreement: float | None = None
    deadline: datetime
    reason: str = ""

    def describe(self, config: LabelingConfig) -> str:
        """Progress and requirements in one line."""
        summary = f"{self.done} of {self.needed} judged, {config.minimum_share:.0%} are required"
        if config.minimum_agreement is not None:
            agreement = "unknown" if self.agreement is None else f"{self.agreement:.2f}"
            summary += f"; agreement {agreement}, {config.minimum_agreement:.2f} is required"
        return f"{summary}; continues at {self.deadline:%Y-%m-%d %H:%M} UTC at the latest"


class Waiting(Record):
    """A suspended run: what it waits for, and the progress at the last check. `place` is the directory of the
    collection, `artifact_id` the table on the run's page."""

    flow_run_id: str
    flow_run_name: str
    place: Path
    config: LabelingConfig
    urls: dict[str, str]
    standing: Standing
    artifact_id: str | None = None


def as_markdown(waiting: Waiting) -> str:
    """Progress, the projects' addresses, and how to resume the run."""
    links = [f"- [{kind}]({url})" for kind, url in waiting.urls.items()]
    return (
        "\n".join(
            [
                f"**{waiting.standing.describe(waiting.config)}**",
                "",
                "People work here:",
                "",
                *links,
                "",
                "The watcher resumes this run automatically. *Resume*, or `rlhf resume "
                f"{waiting.flow_run_name}`, resumes it now with the judgements made so far.",
            ]
        )
        + "\n"
    )


def write_waiting(waiting: Waiting) -> None:
    """Write the record of a suspended run."""
    directory = home_directory() / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{waiting.flow_run_id}.json", waiting.model_dump(mode="json"))


def read_waiting() -> list[Waiting]:
    """All records, the oldest first."""
    paths = sorted((home_directory() / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [Waiting.model_validate_json(path.read_bytes()) for path in paths]


def remove_waiting(flow_run_id: str) -> None:
    """Remove the record of a run that is no longer waiting."""
    (home_directory() / FOLDER / f"{flow_run_id}.json").unlink(missing_ok=True)
