"""Reachability in MLflow: the runs that registered versions, releases and active runs depend on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from alignment.artifacts import output_name
from flows.releases.versions import TAG_RELEASE
from flows.tracking import runs

PAGE = 500


@dataclass(frozen=True)
class Snapshot:
    """Runs and versions of this project in MLflow, read once. Runs since `since_ms` are recent; `held` are the outputs
    that are being produced right now."""

    stages: Mapping[str, Run]
    pipelines: tuple[Run, ...]
    versions: tuple[ModelVersion, ...]
    aliased: frozenset[tuple[str, str]]
    since_ms: int
    held: frozenset[str]

    @cached_property
    def at_work(self) -> frozenset[str]:
        """Stage runs that recent runs need on this machine."""
        roots = {run_id for run_id, run in self.stages.items() if self._recent(run) or name_of(run) in self.held}
        busy = [
            pipeline
            for pipeline in self.pipelines
            if self._recent(pipeline) or (self.held and pipeline.info.status == "RUNNING")
        ]
        return self._closure(roots | set(_stage_run_ids(busy)))

    @cached_property
    def needed(self) -> frozenset[str]:
        """Stage runs that must stay in MLflow; human judgements are never removed."""
        labelled = {run_id for run_id, run in self.stages.items() if run.data.tags[runs.TAG_STAGE] == "labeling"}
        versions = {str(version.run_id) for version in self.versions}
        return self._closure(self.at_work | self.released | labelled | versions)

    @cached_property
    def released(self) -> frozenset[str]:
        """Stage runs that belong to a release."""
        return frozenset(_stage_run_ids(pipeline for pipeline in self.pipelines if TAG_RELEASE in pipeline.data.tags))

    def superseded(self) -> list[ModelVersion]:
        """Versions without an alias, in no release, and not an input of anything needed."""
        ours = [version for version in self.versions if runs.TAG_KEY in version.tags]
        candidates = [version for version in ours if (version.name, str(version.version)) not in self.aliased]
        candidates = [version for version in candidates if (version.creation_timestamp or 0) < self.since_ms]
        needed = self.without(candidates).needed
        return [version for version in candidates if version.run_id not in needed]

    def without(self, versions: Iterable[ModelVersion]) -> "Snapshot":
        """A copy without these versions."""
        gone = {(version.name, version.version) for version in versions}
        kept = tuple(version for version in self.versions if (version.name, version.version) not in gone)
        return Snapshot(self.stages, self.pipelines, kept, self.aliased, self.since_ms, self.held)

    def _recent(self, run: Run) -> bool:
        return max(run.info.start_time or 0, run.info.end_time or 0) >= self.since_ms

    def _closure(self, roots: Iterable[str]) -> frozenset[str]:
        """The runs and, transitively, their inputs; if several runs share a key, all of them."""
        by_key: dict[str, set[str]] = {}
        for run_id, run in self.stages.items():
            by_key.setdefault(run.data.tags.get(runs.TAG_KEY, run_id), set()).add(run_id)
        reached, waiting = set[str](), [run_id for run_id in roots if run_id in self.stages]
        while waiting:
            run_id = waiting.pop()
            if run_id in reached:
                continue
            reached.add(run_id)
            tags = self.stages[run_id].data.tags
            made_from = {str(entry["run_id"]) for entry in runs.read_inputs(tags).values()}
            waiting += [
                input_id for input_id in made_from | by_key[tags.get(runs.TAG_KEY, run_id)] if input_id in self.stages
            ]
        return frozenset(reached)


def name_of(run: Run) -> str:
    """The directory name of a stage run's output; "" without the tags for it."""
    tags = run.data.tags
    return output_name(tags[runs.TAG_STAGE], tags[runs.TAG_KEY]) if runs.TAG_KEY in tags else ""


def _stage_run_ids(pipelines: Iterable[Run]) -> Iterator[str]:
    for pipeline in pipelines:
        yield from (value for name, value in pipeline.data.tags.items() if name.startswith(runs.TAG_STAGE_RUN))


def read_mlflow(since_ms: int, held: Iterable[str]) -> Snapshot:
    """Read runs, versions and aliases from MLflow."""
    client, experiment = MlflowClient(), runs.experiment_id()
    all_runs: list[Run] = _pages(lambda token: client.search_runs([experiment], max_results=PAGE, page_token=token))
    versions = _pages(lambda token: client.search_model_versions(max_results=PAGE, page_token=token))
    models = _pages(lambda token: client.search_registered_models(max_results=100, page_token=token))
    return Snapshot(
        stages={str(run.info.run_id): run for run in all_runs if runs.TAG_STAGE in run.data.tags},
        pipelines=tuple(run for run in all_runs if runs.TAG_STAGE not in run.data.tags),
        versions=tuple(versions),
        aliased=frozenset((str(model.name), str(number)) for model in models for number in model.aliases.values()),
        since_ms=since_ms,
        held=frozenset(held),
    )


def _pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """All rows of a paginated search."""
    rows, token = [], None
    while True:
        page = ask(token)
        rows += page
        token = page.token
        if not token:
            return rows
