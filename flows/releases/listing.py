"""`rlhf releases`: the releases in MLflow, with their figures and their standing in the registry."""

from collections.abc import Sequence
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from alignment.errors import ArtifactError
from alignment.records import Record
from flows.releases.history import changes, rejected
from flows.releases.report import TAG_GATE, newest_releases
from flows.releases.versions import CHAMPION, TAG_RELEASE, models_of
from flows.tracking import runs
from flows.tracking.registry import name_and_number

MOST_RUNS = 500
LONGEST_GATE = 160  # characters of what was missed


class Row(Record):
    """A release; `score` is the gold score, or the reward where there is no gold judge; `finished` is in local time."""

    release: str
    recipe: str
    seed: str
    policy: str
    standing: str
    figures: dict[str, float]
    gate: str
    finished: str

    def texts(self) -> tuple[str, ...]:
        """The cells of a table."""
        figures = self.figures
        score = figures.get("gold_policy_score", figures.get("reward_policy"))
        values = (score, figures.get("win_rate_vs_sft"), figures.get("kl_to_sft"), figures.get("tax_ratio"))
        cells = ("–" if value is None else f"{value:.3f}" for value in values)
        gate = self.gate if len(self.gate) <= LONGEST_GATE else f"{self.gate[:LONGEST_GATE]}…"
        return (self.release, self.policy, self.standing, *cells, self.finished, gate)


def list_releases(recipe: str = "", count: int = 20) -> list[Row]:
    """The newest run of each release, the newest first. Raises ArtifactError when there is none."""
    newest: dict[str, Run] = {}
    for run in newest_releases(MOST_RUNS):
        if recipe in ("", run.data.tags.get(runs.TAG_RECIPE)):
            newest.setdefault(run.data.tags[TAG_RELEASE], run)
    if not newest:
        of = f" of the recipe '{recipe}'" if recipe else ""
        raise ArtifactError(f"there is no release{of} in MLflow; `rlhf run {recipe or 'town'}` makes one")
    return [_row(run) for run in list(newest.values())[:count]]


def _row(run: Run) -> Row:
    tags = run.data.tags
    policy = models_of(run).get("policy", "")
    ended = datetime.fromtimestamp((run.info.end_time or run.info.start_time) / 1000, UTC).astimezone()
    return Row(
        release=tags[TAG_RELEASE],
        recipe=tags.get(runs.TAG_RECIPE, ""),
        seed=run.data.params.get("seed", ""),
        policy=policy.removeprefix("models:/"),
        standing=_standing(policy) if policy else "",
        figures=dict(run.data.metrics),
        gate=tags.get(TAG_GATE, ""),
        finished=ended.strftime("%Y-%m-%d %H:%M"),
    )


def _standing(policy: str) -> str:
    """The aliases of a version; else that it was rejected or was removed."""
    name, number = name_and_number(policy)
    try:
        aliases = list(MlflowClient().get_model_version(name, number).aliases)
    except MlflowException:
        return "removed"
    if CHAMPION in aliases:
        return CHAMPION
    return "rejected" if number in rejected(changes(name)) else ", ".join(sorted(aliases))


def change_log(rows: Sequence[Row]) -> list[str]:
    """Who changed which alias of the listed policies' models, when and why, a line for each change."""
    names = dict.fromkeys(name_and_number(row.policy)[0] for row in rows if row.policy)
    return [f"{name}: {change.sentence()}" for name in names for change in changes(name)]
