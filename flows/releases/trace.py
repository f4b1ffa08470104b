"""Provenance of a comparison: its annotation, annotator, task, project and guidelines."""

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignment.artifacts import output_name
from alignment.bounded import read_json
from alignment.errors import ArtifactError
from flows.home import home_directory
from flows.releases.dataset_card import PARTS
from flows.tracking import runs
from labeling.collection import ADJUDICATION, COLLECTION_FILE, Collection, read_collection
from labeling.quality.screening import SENIOR

MOST_RUNS = 200


def stage_output(run_id: str) -> Path:
    """The output of a stage run: the published copy, else downloaded from MLflow."""
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    name = output_name(tags.get(runs.TAG_STAGE, "?"), tags.get(runs.TAG_KEY, ""))
    published, fetched = (home_directory() / folder / name for folder in ("artifacts", "fetched"))
    if published.is_dir():
        return published
    try:
        fetched.mkdir(parents=True, exist_ok=True)
        return runs.fetch_output(run_id, fetched)
    except (MlflowException, OSError) as error:
        raise ArtifactError(f"run {run_id} no longer has its output; run the recipe again") from error


def trace(comparison_id: str) -> dict[str, Any]:
    """The provenance of a comparison. Raises ArtifactError when no finished run has one with that id.

    `judgement`, `task`, `annotator` and `guidelines` are null for comparisons from files.
    """
    for run in runs.search({runs.TAG_STAGE: "comparisons"}, status="FINISHED", limit=MOST_RUNS):
        output = stage_output(run.info.run_id)
        row = _find(output / "comparisons.jsonl", comparison_id, "id")
        if row is None:
            continue
        labelled = runs.read_inputs(run.data.tags).get("labelled")
        origin = {
            "comparison": row,
            "artifact": str(output),
            "run_id": run.info.run_id,
            "split": next((part for part in PARTS if _find(output / f"{part}.jsonl", comparison_id, "id")), ""),
        }
        details = _judgement_details(row, stage_output(labelled["run_id"])) if labelled else {}
        return origin | {"judgement": None, "task": None, "annotator": None, "guidelines": None} | details
    raise ArtifactError(
        f"no comparisons stage of a finished run has '{comparison_id}'; the ids are in the comparisons.jsonl of its "
        "output, which `rlhf lineage reward` names"
    )


def _find(path: Path, value: str, key: str) -> dict[str, Any] | None:
    """The first row of a JSONL file with this value; only lines that contain it are parsed."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        for line in file:
            if value in line:
                row: dict[str, Any] = json.loads(line)
                if str(row.get(key)) == value:
                    return row
    return None


def _judgement_details(row: dict[str, Any], labelled: Path) -> dict[str, Any]:
    """Judgement, annotator, task and guidelines of a comparison, from the labelling stage's output."""
    judgement = _find(labelled / "judgements.jsonl", row["annotation_id"], "annotation_id")
    details: dict[str, Any] = {"judgement": judgement, "annotator": _annotator(labelled, row["annotator_id"])}
    uid = row.get("task_uid") or (judgement or {}).get("task_uid")
    opened = labelled / ADJUDICATION if uid and _was_adjudicated(uid, labelled) else labelled
    if uid and (opened / COLLECTION_FILE).is_file():
        details |= _task(read_collection(opened), uid, labelled)
    return details


def _was_adjudicated(uid: str, labelled: Path) -> bool:
    """Whether the task was adjudicated: a senior's judgement replaced the others."""
    path = labelled / "set_aside.jsonl"
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if uid in line]
    return any(SENIOR in row["reasons"] and row["comparison"]["task_uid"] == uid for row in rows)


def _task(collection: Collection, uid: str, labelled: Path) -> dict[str, Any]:
    for batch in collection.batches:
        if uid in batch.task_ids:
            project = batch.project
            screen_file = labelled / "screens" / f"{project.kind}-{project.screen_hash}.xml"
            url = f"{project.url}/projects/{project.id}/data?task={batch.task_ids[uid]}"
            shown = [task.shown for task in batch.tasks if task.uid == uid]
            return {
                "task": {
                    "uid": uid,
                    "kind": project.kind,
                    "project": project.title,
                    "task_url": url,
                    "project_url": project.labeling_url,
                    "shown": list(shown[0]) if shown else [],
                },
                "guidelines": {
                    "version": project.screen_hash,
                    "file": str(screen_file) if screen_file.is_file() else None,
                },
            }
    return {}


def _annotator(labelled: Path, annotator_id: str) -> dict[str, Any]:
    """The annotator's id, with the figures that the labelling stage wrote, if any."""
    path = labelled / "annotators.json"
    rows = read_json(path) if path.is_file() else []
    return next((row for row in rows if row.get("annotator_id") == annotator_id), {"annotator_id": annotator_id})


def trace_view(origin: dict[str, Any]) -> Group:
    """A comparison and its provenance for the terminal; text of models is printed verbatim, never as markup."""
    row = origin["comparison"]
    prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"]["messages"])
    label = "tie" if row["strength"] == 0 else f"chosen, strength {row['strength']}"
    return Group(
        Panel(Text(prompt), title="prompt", title_align="left"),
        Panel(Text(row["chosen"]["text"]), title=label, title_align="left"),
        Panel(Text(row["rejected"]["text"]), title="tie" if row["strength"] == 0 else "rejected", title_align="left"),
        _facts(origin),
    )


def _facts(origin: dict[str, Any]) -> Table:
    row, judgement, task = origin["comparison"], origin["judgement"] or {}, origin["task"] or {}
    first = {True: "chosen", False: "rejected"}.get(row.get("chosen_first"), "unknown")
    guidelines = origin["guidelines"] or {}
    facts = {
        "comparison": row["id"],
        "split": origin["split"],
        "annotation": row["annotation_id"] or "unknown",
        "annotator": _person(origin["annotator"] or {"annotator_id": row["annotator_id"]}),
        "created": judgement.get("created_at"),
        "lead time": _seconds(judgement.get("lead_time")),
        "shown first": first,
        "criteria": _pairs(row.get("criteria")),
        "stars": _pairs(judgement.get("ratings")),
        "flags": _pairs(judgement.get("flags")),
        "reason": judgement.get("rationale"),
        "task": row.get("task_uid") or task.get("uid"),
        "task address": task.get("task_url"),
        "project": task.get("project"),
        "guidelines": guidelines.get("version"),
        "as shown": guidelines.get("file"),
        "data set": origin["artifact"],
        "MLflow run": origin["run_id"],
    }
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(str(value), overflow="fold"))
    return table


def _person(annotator: dict[str, Any]) -> str:
    share = annotator.get("agreement_with_others")
    agreement = "" if share is None else f" (agrees with others on {share:.2f})"
    return f"{annotator['annotator_id'] or 'unknown'}{agreement}"


def _seconds(value: Any) -> str:
    return f"{value:.1f} s" if value else ""


def _pairs(values: Any) -> str:
    texts = {name: " ".join(value) if isinstance(value, list) else value for name, value in (values or {}).items()}
    return ", ".join(f"{name} {value}" for name, value in texts.items())
