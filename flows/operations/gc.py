"""`rlhf gc`: lists files that are no longer needed, and removes them on request.

Never removed: inputs of a registered version, a release or a labelling; outputs locked by a running stage (in
`home/locks`) or used by a recent run; outputs that MLflow does not have in full; `annotations.db`. Local files that are
removed can be downloaded again, and runs whose artifacts are removed from MLflow keep their figures.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import FileInfo, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from alignment.artifacts import write_json
from alignment.records import Record
from flows.home import home_directory
from flows.locks import held_locks, try_lock
from flows.operations.reachable import Snapshot, name_of, read_mlflow
from flows.tracking import runs
from flows.tracking.layout import OUTPUT, SERVED
from flows.tracking.logs import FOLDER as RUN_LOGS

DAY_SECONDS = 86_400.0
TAG_COLLECTED = "rlhf.collected"
LABELLING = "labeling-"
PARTIAL = ".partial"
Kind = Literal["leftover", "checkpoint", "output", "fetched", "log", "lock", "stored", "version"]


class Item(Record):
    """An item that can be removed: a local file or directory, the artifacts of a run (`stored`), or a model version.

    `place` is its path, run id or model URI.
    """

    kind: Kind
    place: str
    size: int
    why: str
    lock: str = ""


def plan(days: float = 30.0, *, superseded: bool = False) -> list[Item]:
    """List the items that can be removed; what was used within `days` is kept. MLflow must be reachable."""
    home = home_directory()
    since = time.time() - days * DAY_SECONDS
    snapshot = read_mlflow(int(since * 1000), held_locks(home))
    versions = snapshot.superseded() if superseded else []
    snapshot = snapshot.without(versions)
    items = [*_leftovers(home, snapshot, since), *_outputs(home, snapshot, since), *_old_copies(home, since)]
    items += map(_version, versions)
    items += _stored(snapshot)
    return [*items, *_locks(home, snapshot, since, {item.lock for item in items})]


def remove_items(items: Iterable[Item]) -> list[str]:
    """Remove the items of `plan`, except those now in use; returns the reason for each item that was not removed."""
    home, problems = home_directory(), []
    for item in items:
        with try_lock(home, item.lock) as free:
            if not free:
                problems.append(f"{item.place} is in use now")
                continue
            try:
                REMOVE[item.kind](item)
            except (OSError, MlflowException) as error:
                problems.append(f"{item.place} could not be removed: {error}")
    return problems


def _leftovers(home: Path, snapshot: Snapshot, since: float) -> Iterator[Item]:
    """Files left behind by killed processes next to the outputs."""
    for path in sorted((home / "artifacts").glob("*.*")):
        name, suffix = path.name.partition(".")[0], path.suffix
        if name in snapshot.held:
            continue
        if suffix == ".download" or suffix.startswith(".replaced-"):
            why = "left behind by a process that ended"
            yield Item(kind="leftover", place=str(path), size=_size(path), why=why, lock=name)
        elif suffix == PARTIAL and not name.startswith(LABELLING) and _last_modified(path) < since:
            why = "unfinished and not resumed"
            yield Item(kind="checkpoint", place=str(path), size=_size(path), why=why, lock=name)


def _outputs(home: Path, snapshot: Snapshot, since: float) -> Iterator[Item]:
    """Published outputs that no recent run uses and that MLflow has in full, or that nothing needs."""
    busy = {name_of(snapshot.stages[run_id]) for run_id in snapshot.at_work} | snapshot.held
    by_name = {name_of(run): run for run in snapshot.stages.values() if run.data.tags.get(runs.TAG_DIGEST)}
    for path in sorted((home / "artifacts").glob("*-*")):
        run = by_name.get(path.name)
        if run is None or path.name in busy or path.stat().st_mtime >= since:
            continue
        unneeded = run.info.run_id not in snapshot.needed
        if unneeded or _is_stored(path, run):
            why = "nothing needs it" if unneeded else "MLflow has it, and a run downloads it again"
            yield Item(kind="output", place=str(path), size=_size(path), why=why, lock=path.name)


def _old_copies(home: Path, since: float) -> Iterator[Item]:
    """Copies that were downloaded for inspection, and logs of old runs."""
    directories: tuple[tuple[Kind, Path], ...] = (("fetched", home / "fetched"), ("log", home / RUN_LOGS))
    for kind, directory in directories:
        for path in sorted(directory.glob("*")):
            if _last_modified(path) < since:
                yield Item(kind=kind, place=str(path), size=_size(path), why="old")


def _locks(home: Path, snapshot: Snapshot, since: float, removed: set[str]) -> Iterator[Item]:
    for path in sorted((home / "locks").glob("*.lock")):
        remaining = [output for output in (home / "artifacts").glob(f"{path.stem}*") if path.stem not in removed]
        if path.stem not in snapshot.held and not remaining and path.stat().st_mtime < since:
            yield Item(kind="lock", place=str(path), size=0, why="not held", lock=path.stem)


def _stored(snapshot: Snapshot) -> Iterator[Item]:
    """Artifacts in MLflow of stages that led to no version and no release."""
    for run_id, run in snapshot.stages.items():
        size = (
            0
            if run_id in snapshot.needed
            else _total_size(files_of(run_id, OUTPUT)) + _total_size(files_of(run_id, SERVED))
        )
        if size:
            why = f"{run.data.tags[runs.TAG_STAGE]} that led to no version and no release"
            yield Item(kind="stored", place=run_id, size=size, why=why, lock=name_of(run))


def _version(version: ModelVersion) -> Item:
    """A registered version. Its files belong to the run of its stage, which is a separate item."""
    return Item(kind="version", place=f"models:/{version.name}/{version.version}", size=0, why="no alias, no release")


def _total_size(files: Mapping[str, FileInfo]) -> int:
    return sum(file.file_size or 0 for file in files.values())


def _is_stored(path: Path, run: Run) -> bool:
    """Whether MLflow has every file of a published output, by name and size."""
    local = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    stored = files_of(str(run.info.run_id), f"{SERVED}/artifacts") | files_of(str(run.info.run_id), OUTPUT)
    return local == {name: file.file_size for name, file in stored.items() if name in local}


def files_of(run_id: str, root: str) -> dict[str, FileInfo]:
    """The files below a directory of a run's artifacts, by relative path; empty if it does not exist."""
    files: dict[str, FileInfo] = {}
    pending = [root]
    while pending:
        try:
            for file in MlflowClient().list_artifacts(run_id, pending.pop()):
                if file.is_dir:
                    pending.append(file.path)
                else:
                    files[file.path.removeprefix(f"{root}/")] = file
        except MlflowException:  # a path that does not exist
            continue
    return files


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _last_modified(path: Path) -> float:
    """The latest modification in a directory tree, in seconds since the epoch."""
    return max((entry.lstat().st_mtime for entry in (path, *path.rglob("*"))), default=0.0)


def remove_local(item: Item) -> None:
    """Remove a file or directory; a directory is renamed first, so that its name never holds a partial copy."""
    path = Path(item.place)
    if path.is_dir():
        aside = path.with_name(f"{path.name.partition('.')[0]}.replaced-{uuid.uuid4().hex[:8]}")
        path.rename(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def remove_stored(item: Item) -> None:
    """Remove a run's artifacts from MLflow's store; first its digest, so that the run no longer counts as finished."""
    client = MlflowClient()
    if versions := client.search_model_versions(f"run_id = '{item.place}'"):
        raise MlflowException(f"{versions[0].name}/{versions[0].version} is made from it")
    run = client.get_run(item.place)
    client.set_tag(item.place, TAG_COLLECTED, time.strftime("%Y-%m-%d"))
    if runs.TAG_DIGEST in run.data.tags:
        client.delete_tag(item.place, runs.TAG_DIGEST)
    for root in (OUTPUT, SERVED):
        if files_of(item.place, root):
            get_artifact_repository(str(run.info.artifact_uri)).delete_artifacts(root)


def remove_version(item: Item) -> None:
    """Remove a version, unless it has an alias by now."""
    client = MlflowClient()
    name, number = item.place.removeprefix("models:/").rsplit("/", 1)
    version = client.get_model_version(name, number)
    if version.aliases:
        raise MlflowException(f"it is {', '.join(version.aliases)} now")
    client.delete_model_version(name, number)


REMOVE: dict[Kind, Callable[[Item], None]] = {
    "leftover": remove_local,
    "checkpoint": remove_local,
    "output": remove_local,
    "fetched": remove_local,
    "log": remove_local,
    "lock": remove_local,
    "stored": remove_stored,
    "version": remove_version,
}


def write_removal_log(items: Iterable[Item]) -> Path:
    """Write the list of removed items to a dated file and return its path."""
    path = home_directory() / "logs" / f"gc-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [item.model_dump(mode="json") for item in items])
    return path
