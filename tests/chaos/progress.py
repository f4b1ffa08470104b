"""The progress of a running pipeline, read from disk, to time kills."""

import json
from pathlib import Path

from alignment.artifacts import output_name
from flows.pipeline.dag import keys, steps
from flows.recipe.schema import Recipe

STATES = ("not begun", "begun", "at a checkpoint", "worked", "uploading", "registering", "published")
NOT_BEGUN, BEGUN, CHECKPOINT, WORKED, UPLOADING, REGISTERING, PUBLISHED = range(len(STATES))
RELEASE = "release"  # after the last stage: aliases, the manifest, figures
Place = tuple[str, int]


class Progress:
    """The outputs of a recipe below a home, whose MLflow server keeps its files there too."""

    def __init__(self, home: Path, recipe: Recipe) -> None:
        chain = steps(recipe)
        self.keys = keys(chain)
        self.stages = [*chain]
        self.models = {name: step.model for name, step in chain.items() if step.model}
        self._final = {name: home / "artifacts" / output_name(name, key) for name, key in self.keys.items()}
        self._kept = home / "mlflow" / "artifacts" / "1"
        self._results: dict[str, int] = {}

    def state(self, stage: str) -> int:
        """How far a stage is. Raises AssertionError when its finished work was begun anew."""
        if stage == RELEASE:
            return BEGUN if self.state(self.stages[-1]) == PUBLISHED else NOT_BEGUN
        final = self._final[stage]
        partial = final.with_name(final.name + ".partial")
        if (when := _time_of(final / "result.json")) is not None:
            self._bear_witness(stage, when)
            return PUBLISHED
        if not partial.is_dir():
            return NOT_BEGUN
        if (when := _time_of(partial / "result.json")) is None:
            return CHECKPOINT if _has_checkpoint(partial) else BEGUN
        self._bear_witness(stage, when)
        if stage in self.models and (_time_of(self._kept / "models") or 0) > when:
            return REGISTERING
        return UPLOADING if self._is_uploading(partial) else WORKED

    def _is_uploading(self, partial: Path) -> bool:
        try:
            run_id = json.loads((partial / "provenance.json").read_text(encoding="utf-8"))["run_id"]
        except FileNotFoundError:  # it was published in this moment
            return True
        return (self._kept / run_id / "artifacts" / "output").is_dir()

    def _bear_witness(self, stage: str, when: int) -> None:
        first = self._results.setdefault(stage, when)
        assert first == when, f"the work of stage '{stage}' was done and was then done again"

    def here(self) -> Place:
        """The first stage that is not published, and how far it is."""
        for stage in self.stages:
            state = self.state(stage)
            if state != PUBLISHED:
                return stage, state
        return RELEASE, BEGUN

    def reached(self, place: Place) -> bool:
        """Whether the pipeline is at a place or past it."""
        return self.state(place[0]) >= place[1]


def _time_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _has_checkpoint(partial: Path) -> bool:
    """Whether a training can go on from somewhere; see `alignment.training.loop`, `alignment.ppo`, TRL's trainers."""
    patterns = ("state.pt", "step-*.pt", "checkpoint-*/trainer_state.json")
    return any(next((partial / "checkpoint").glob(pattern), None) for pattern in patterns)
