"""Stages as MLflow runs, with MLflow as the cache: a stage with a finished run and existing output is not run again.

A stage's key is a hash of all its inputs (see `alignment.artifacts`). A finished run with that key is the result, on
any machine that shares the tracking server; an unfinished run is resumed with the same run id in the same directory, so
that training resumes from its checkpoint. Outputs are published by one rename, and a run is FINISHED only after that: a
partial output is never mistaken for a finished one.
"""

import json
import logging
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prefect.client.schemas import State
from prefect.states import Completed

from alignment.artifacts import (
    Artifact,
    canonical,
    content_digest,
    directory_digest,
    output_name,
    publish,
    write_json,
)
from alignment.journal import ENVIRONMENT_FILE, Journal
from alignment.records import Rejected, read_records
from alignment.stage import Figures, Step
from flows import locks
from flows.failures import stage_stopped
from flows.home import home_directory
from flows.tracking import links, logs, registry, runs
from flows.tracking.layout import MODEL, OUTPUT
from flows.tracking.metrics import METRICS_FILE, MetricSender, Point, send_all
from flows.tracking.progress import shown_progress
from flows.tracking.provenance import git_commit, versions

log = logging.getLogger(__name__)
Perform = Callable[[Step, Path, Journal, Mapping[str, Path]], Figures]
CHECKPOINTS = "checkpoint"  # the checkpoints that training resumes from; not part of the output


@dataclass(frozen=True)
class Job:
    """A step with its inputs, its MLflow parent run, and its directories."""

    step: Step
    inputs: Mapping[str, Artifact]
    parent: str | None
    home: Path
    key: str

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.step.name

    @property
    def final(self) -> Path:
        """The directory of the published output."""
        return self.home / "artifacts" / output_name(self.stage, self.key)

    @property
    def partial(self) -> Path:
        """The working directory of the stage; kept when it is killed."""
        return self.final.with_name(self.final.name + ".partial")


def run_step(
    step: Step,
    inputs: Mapping[str, Artifact],
    perform: Perform = Step.perform,
    *,
    parent: str | None = None,
    home: Path | None = None,
) -> Artifact:
    """The output of a step, from the cache or computed by `perform`.

    `parent` is the MLflow run to nest under, by default the active one.
    """
    missing = step.inputs.keys() - inputs.keys()
    assert not missing, f"{step.name} needs {sorted(step.inputs)}, got {sorted(inputs)}"
    active = mlflow.active_run()
    job = Job(
        step=step,
        inputs={name: inputs[name] for name in step.inputs},
        parent=parent or (active.info.run_id if active else None),
        home=home_directory(home),
        key=step.key({name: inputs[name].key for name in step.inputs}, [content_digest(path) for path in step.files]),
    )
    with logs.log_context(stage=job.stage), _friendly_errors(job):
        with _exclusive(job):
            artifact = find(job.stage, job.key, job.home) or _run_or_resume(job, perform)
            artifact = _registered(job, artifact)
            _remove_leftovers(job)
        if job.parent is not None:
            _note_on_parent(job.parent, artifact)
        logs.notes.info("cached" if artifact.cached else f"finished in {artifact.seconds:.1f} s")
    return artifact


def as_state(artifact: Artifact) -> Artifact | State[Artifact]:
    """The return value of a Prefect task for a stage; an artifact from the cache gets the state Cached."""
    return Completed(name="Cached", data=artifact) if artifact.cached else artifact


def find(stage: str, key: str, home: Path) -> Artifact | None:
    """The finished output for a key: published locally, or downloaded from MLflow; None when there is none."""
    final = home / "artifacts" / output_name(stage, key)
    for run in runs.search({runs.TAG_KEY: key, runs.TAG_STAGE: stage}, status="FINISHED"):
        tags = run.data.tags
        digest, model = tags.get(runs.TAG_DIGEST, ""), tags.get(runs.TAG_MODEL)
        if model is not None and not registry.version_exists(model):  # a version of another recipe may still exist
            model = next(iter(registry.versions_of_run(run.info.run_id)), None)
        if not digest or (runs.TAG_MODEL in tags and model is None):
            continue
        if not (final.is_dir() and directory_digest(final) == digest) and not _restore(run, model, final, digest):
            continue
        return Artifact(
            stage=stage,
            key=key,
            run_id=run.info.run_id,
            path=final,
            digest=digest,
            model=model,
            cached=True,
            seconds=float(tags.get(runs.TAG_SECONDS, "0")),
        )
    return None


def _registered(job: Job, artifact: Artifact) -> Artifact:
    """The output with the version under this recipe's name, which is new if only other recipes used the stage."""
    name = job.step.model
    if name is None or artifact.model is None or registry.name_and_number(artifact.model)[0] == name:
        return artifact
    model = registry.register_as(name, artifact.model, stage=job.stage, key=job.key)
    return artifact.model_copy(update={"model": model})


def _restore(run: Run, model: str | None, final: Path, digest: str) -> bool:
    """Download a run's output from MLflow. False when it is missing or differs from what was published."""
    directory = final.with_name(final.name + ".download")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        output = runs.fetch_output(run.info.run_id, directory)
        if model is not None:
            (registry.fetch_checkpoint(model, directory / "version") / MODEL).rename(output / MODEL)
        if directory_digest(output) != digest:
            log.warning(
                "the output of run %s in MLflow differs from what was published; the stage runs again", run.info.run_id
            )
            return False
        publish(output, final)
        return True
    except (MlflowException, OSError) as error:
        log.info("the output of run %s cannot be downloaded, the stage runs again: %s", run.info.run_id, error)
        return False
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run_or_resume(job: Job, perform: Perform) -> Artifact:
    """Run or resume a stage. The order ensures that partial outputs never count: see the module's docstring."""
    run_id = runs.open_stage_run(
        job.stage,
        job.key,
        config=job.step.options,
        seed=job.step.seed,
        version=job.step.stage.version,
        inputs=job.inputs,
        parent=job.parent,
        files=job.step.files,
        run_name=f"{job.step.registry}-{job.step.seed} {job.stage}" if job.step.registry else "",
    )
    if job.parent is None:
        links.link_stage(run_id, job.stage)
    with logs.log_context(stage_run_id=run_id), runs.active(run_id=run_id, nested=True), _friendly_errors(job):
        _reclaim_published(job, run_id)
        provenance, sent = _work_and_clean(job, perform, run_id)
        seconds = float(provenance["seconds"])
        digest = directory_digest(job.partial)
        send_all(run_id, job.partial, sent)
        model = _upload(job, run_id)
        tags = {runs.TAG_DIGEST: digest, runs.TAG_SECONDS: f"{seconds:.3f}"}
        used = provenance["compute"]
        tags |= {tag: str(used[name]) for name, tag in runs.COMPUTE_TAGS.items() if name in used}
        for name, value in (tags | ({runs.TAG_MODEL: model} if model else {})).items():
            MlflowClient().set_tag(run_id, name, value)
        publish(job.partial, job.final)
    _tell_rejected(job)
    return Artifact(
        stage=job.stage, key=job.key, run_id=run_id, path=job.final, digest=digest, model=model, seconds=seconds
    )


def _tell_rejected(job: Job) -> None:
    """Log how many rows the stage put aside, and the most frequent reason; numbers in it do not count."""
    path = job.final / "rejected.jsonl"
    rows = read_records(path, Rejected)[0] if path.is_file() else []
    if not rows:
        return
    kinds = [re.sub(r"\d+", "#", row.reason) for row in rows]
    kind, count = Counter(kinds).most_common(1)[0]
    first = rows[kinds.index(kind)]
    reason = "".join(character if character.isprintable() else "�" for character in first.reason)[:300]
    log.warning(
        "stage '%s' put aside %d rows, %d of them for such a reason: %s (%s line %d). All are in %s",
        *(job.stage, len(rows), count, reason, first.file, first.line, path),
    )


@contextmanager
def _friendly_errors(job: Job) -> Iterator[None]:
    """Replace errors of a full disk, exhausted memory or an unreachable server by friendly ones."""
    try:
        yield
    except Exception as error:
        friendly = stage_stopped(error, job.step.stage, job.partial)
        if friendly is None:
            raise
        raise friendly from error


def _reclaim_published(job: Job, run_id: str) -> None:
    """Move back an output whose run was killed after publishing and before FINISHED: the upload resumes from it."""
    digest = MlflowClient().get_run(run_id).data.tags.get(runs.TAG_DIGEST)
    if digest and not job.partial.exists() and job.final.is_dir() and directory_digest(job.final) == digest:
        job.final.rename(job.partial)


def _remove_leftovers(job: Job) -> None:
    """Remove partial downloads and working directories that killed runs left next to the output."""
    for path in job.final.parent.glob(f"{job.final.name}.*"):
        shutil.rmtree(path)


def _work_and_clean(job: Job, perform: Perform, run_id: str) -> tuple[dict[str, Any], dict[Point, float] | None]:
    """Run the stage's work, unless a killed run already finished it, and remove checkpoints; return its provenance, and
    the metrics that were sent to MLflow."""
    out = job.partial
    out.mkdir(parents=True, exist_ok=True)
    sent = None if (out / "result.json").exists() else _perform(job, perform, run_id)
    for checkpoint in [*out.rglob(CHECKPOINTS)]:  # only now: until the work is done it resumes from them
        shutil.rmtree(checkpoint)
    (out / ENVIRONMENT_FILE).unlink(missing_ok=True)
    provenance: dict[str, Any] = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    return provenance, sent


def _perform(job: Job, perform: Perform, run_id: str) -> dict[Point, float] | None:
    """Run the stage's work; `result.json` is written last and marks it as done. Returns the sent metrics."""
    out = job.partial
    started = time.monotonic()
    with MetricSender(run_id, out / METRICS_FILE, job.stage) as sender, shown_progress():
        figures = perform(job.step, out, Journal(out), {name: item.path for name, item in job.inputs.items()})
    seconds = time.monotonic() - started
    write_json(out / "provenance.json", _provenance(job, run_id, seconds))
    not_finite = [name for name, value in figures.items() if not math.isfinite(value)]
    if not_finite:
        log.warning("stage '%s' has figures that are not finite and are dropped: %s", job.stage, ", ".join(not_finite))
    finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
    write_json(out / "result.json", finite)
    return sender.sent


def _provenance(job: Job, run_id: str, seconds: float) -> dict[str, object]:
    """The content of `provenance.json` next to an output."""
    inputs = {name: {"stage": item.stage, "key": item.key, "digest": item.digest} for name, item in job.inputs.items()}
    files = {str(path): content_digest(path) for path in job.step.files}
    return {
        "stage": job.stage,
        "key": job.key,
        "stage_version": job.step.stage.version,
        "seed": job.step.seed,
        "run_id": run_id,
        "seconds": round(seconds, 3),
        "config": canonical(job.step.options),
        "inputs": inputs,
        "files": files,
        "git_commit": git_commit(),
        "versions": versions(),
        "compute": job.step.compute.model_dump() | _environment(job.partial),
    }


def _environment(out: Path) -> dict[str, str]:
    """The device and the precision that a stage used; a stage without models uses none."""
    path = out / ENVIRONMENT_FILE
    used: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return used


def _upload(job: Job, run_id: str) -> str | None:
    """Upload the output to MLflow. A registered model's files are stored with its version, and not twice in the run."""
    if job.step.model is None:
        MlflowClient().log_artifacts(run_id, str(job.partial), OUTPUT)
        return None
    for path in sorted(job.partial.iterdir()):
        if path.is_dir() and path.name != MODEL:
            MlflowClient().log_artifacts(run_id, str(path), f"{OUTPUT}/{path.name}")
        elif path.is_file():
            MlflowClient().log_artifact(run_id, str(path), OUTPUT)
    return registry.register(job.step.model, job.partial / MODEL, stage=job.stage, key=job.key, run_id=run_id)


def _note_on_parent(parent: str, artifact: Artifact) -> None:
    """Tag the pipeline's run with the id of each stage's run, including cached ones."""
    client = MlflowClient()
    client.set_tag(parent, f"{runs.TAG_STAGE_RUN}{artifact.stage}", artifact.run_id)
    client.set_tag(parent, f"rlhf.cached.{artifact.stage}", str(artifact.cached).lower())


@contextmanager
def _exclusive(job: Job) -> Iterator[None]:
    """Ensure that only one process produces an output at a time: a second one waits and then finds it in the cache."""
    while True:
        with locks.open_lock(job.home, job.final.name) as file:
            locks.wait_for(file, lambda who: log.info("stage '%s' is running in %s; waiting for it", job.stage, who))
            if locks.is_current(file):
                yield
                return
