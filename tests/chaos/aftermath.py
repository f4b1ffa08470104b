"""Invariants after a series of kills, checked on the servers and on disk."""

from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from flows.stack.stack import Stack
from flows.tracking import runs
from flows.tracking.layout import SERVED
from labeling.names import uid_of
from labeling.server.client import LabelStudio
from tests.chaos.progress import Progress


def check_outputs(home: Path, progress: Progress) -> None:
    """Every stage is published, and nothing half-made lies beside."""
    assert progress.here()[0] == "release"
    assert sorted(path.name.rpartition("-")[0] for path in (home / "artifacts").iterdir()) == sorted(progress.stages)
    strays = [path for path in (home / "artifacts").rglob("*") if path.name.endswith((".partial", ".tmp"))]
    assert not strays, f"left over: {strays}"


def check_runs(running: Stack, progress: Progress) -> None:
    """One run a stage, FINISHED, with every metric once, and one run of the pipeline."""
    client = MlflowClient(running.urls["mlflow"], running.urls["mlflow"])
    experiment = client.get_experiment_by_name(runs.EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{runs.TAG_STAGE}` != ''", max_results=1000)
    by_stage = Counter(run.data.tags[runs.TAG_STAGE] for run in found)
    assert by_stage == dict.fromkeys(progress.stages, 1)
    (pipeline,) = client.search_runs([experiment.experiment_id], f"tags.`{runs.TAG_RECIPE}` != ''")
    assert pipeline.info.status == "FINISHED"
    for run in found:
        stage = run.data.tags[runs.TAG_STAGE]
        assert (run.info.status, run.data.tags[runs.TAG_KEY]) == ("FINISHED", progress.keys[stage]), stage
        for name in run.data.metrics:
            logged = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
            assert len(logged) == len(set(logged)), f"{stage}: {name} was logged more than once: {sorted(logged)}"


def check_models(running: Stack, home: Path, progress: Progress) -> None:
    """One version a model, whole, with its files once on the disk."""
    client = MlflowClient(running.urls["mlflow"], running.urls["mlflow"])
    versions = [
        one
        for model in client.search_registered_models()
        for one in client.search_model_versions(f"name = '{model.name}'")
    ]
    assert Counter(one.name for one in versions) == dict.fromkeys(progress.models.values(), 1)
    assert all(one.status == "READY" and one.source.endswith(f"{one.run_id}/artifacts/{SERVED}") for one in versions)
    kept = [path.parent.parent.name for path in (home / "mlflow" / "artifacts").glob(f"*/*/artifacts/{SERVED}")]
    assert sorted(kept) == sorted(one.run_id for one in versions)


def check_judgements(running: Stack, title: str, expected: dict[str, int]) -> None:
    """Every task once, judged by as many as were asked for, by nobody twice; `expected`: annotations by kind."""
    with LabelStudio(running.urls["label-studio"], running.credentials.label_studio_token) as owner:
        found = {str(raw["title"]): int(raw["id"]) for raw in owner.projects() if raw["title"].startswith(title)}
        assert len(found) == len(expected), found
        for kind, count in expected.items():
            (number,) = (number for name, number in found.items() if name.startswith(f"{title} {kind} "))
            rows = list(owner.tasks_with_annotations(number))
            assert max(Counter(map(uid_of, rows)).values()) == 1, f"{kind}: a task is there twice"
            said = Counter((row["id"], one["completed_by"]) for row in rows for one in row["annotations"])
            assert max(said.values()) == 1, f"{kind}: somebody judged a task twice"
            assert said.total() == count, f"{kind}: {said.total()} annotations, {count} were asked for"
