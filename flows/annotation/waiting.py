"""Records of suspended flow runs: one file `home/waiting/FLOW_RUN.json` each.

The watcher (`flows.deployments.watcher`) and `rlhf status` read in it what the run waits for.
"""

from datetime import datetime
from pathlib import Path

from alignment.artifacts import write_json
from alignment.records import Record
from flows.home import home_directory
from labeling.config import LabelingConfig

FOLDER = "waiting"


class Standing(Record):
    """How far a collection is. `agreement` is looked at once the quota is reached, if the recipe asks for some.

    `reason` says why it is enough, "" while it is not.
    """

    done: int
    needed: int
    agreement: float | None = None
    deadline: datetime
    reason: str = ""

    def in_words(self, config: LabelingConfig) -> str:
        """For a line of a table."""
        asked = f"{self.done} of {self.needed} judged, {config.minimum_share:.0%} are asked for"
        if config.minimum_agreement is not None:
            now = "not known yet" if self.agreement is None else f"{self.agreement:.2f}"
            asked += f"; agreement {now}, {config.minimum_agreement:.2f} is asked for"
        return f"{asked}; goes on at {self.deadline:%Y-%m-%d %H:%M} UTC with what there is"


class Waiting(Record):
    """A suspended run: what it waits for, and how far that was when it was last looked at. `place` has the collection,
    `artifact_id` is the table on the run's page."""

    flow_run_id: str
    flow_run_name: str
    place: Path
    config: LabelingConfig
    urls: dict[str, str]
    standing: Standing
    artifact_id: str | None = None


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


def write_waiting(waiting: Waiting) -> None:
    """Keep the record of a suspended run."""
    folder = home_directory() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{waiting.flow_run_id}.json", waiting.model_dump(mode="json"))


def read_waiting() -> list[Waiting]:
    """All records, the oldest first."""
    found = sorted((home_directory() / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [Waiting.model_validate_json(path.read_bytes()) for path in found]


def remove_waiting(flow_run_id: str) -> None:
    """Remove the record of a run that does not wait any more."""
    (home_directory() / FOLDER / f"{flow_run_id}.json").unlink(missing_ok=True)
