"""`rlhf lineage`: traces a registered version back to annotation ids and the corpus, by the tags of stage runs."""

import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from rich.tree import Tree

from alignment.artifacts import output_name
from alignment.errors import ArtifactError
from alignment.records import read_lines
from flows.home import home_directory
from flows.releases.versions import resolve
from flows.tracking import runs

COMPARISONS = "comparisons.jsonl"
SHOWN_ANNOTATIONS = 6


def lineage(model: str) -> dict[str, Any]:
    """The lineage of a version ("town-policy", "town-policy@champion", "town-policy/3").

    Returns the version with nested `inputs`; a comparisons node has `annotation_ids` and `annotator_ids`. A stage that
    occurs twice is expanded once, and is `{"stage": ..., "see": key}` after that.
    """
    name, version = resolve(model)
    registered = mlflow.MlflowClient().get_model_version(name, version)
    if registered.run_id is None:
        raise ArtifactError(f"{model} was registered without a run, so its lineage is unknown")
    tree = _node(registered.run_id, home_directory(), set())
    return {"model": f"models:/{name}/{version}", "aliases": list(registered.aliases), **tree}


def _node(run_id: str, home: Path, seen: set[str]) -> dict[str, Any]:
    """A stage run with its inputs."""
    tags = mlflow.MlflowClient().get_run(run_id).data.tags
    stage, key = tags.get(runs.TAG_STAGE, "?"), tags.get(runs.TAG_KEY, "")
    if key in seen:
        return {"stage": stage, "see": key}
    seen.add(key)
    node: dict[str, Any] = {
        "stage": stage,
        "key": key,
        "run_id": run_id,
        "digest": tags.get(runs.TAG_DIGEST, ""),
        "model": tags.get(runs.TAG_MODEL),
        "git_commit": tags.get("mlflow.source.git.commit", ""),
    }
    if stage == "comparisons":
        node |= _judgements(run_id, home / "artifacts" / output_name(stage, key))
    inputs = runs.read_inputs(tags)
    node["inputs"] = {name: _node(inputs[name]["run_id"], home, seen) for name in sorted(inputs)}
    return node


def _judgements(run_id: str, published: Path) -> dict[str, Any]:
    """Annotation and annotator ids of a comparisons artifact, from the local copy or from MLflow."""
    if (published / COMPARISONS).is_file():
        return _read(published / COMPARISONS)
    with tempfile.TemporaryDirectory() as directory:
        try:
            return _read(runs.fetch_output(run_id, Path(directory), COMPARISONS))
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"run {run_id} no longer has its {COMPARISONS}; run the recipe again") from error


def _read(path: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for number, row, reason in read_lines(path):
        if reason or not isinstance(row, dict) or not {"annotation_id", "annotator_id"} <= row.keys():
            raise ArtifactError(f"{path.name} line {number} is no comparison ({reason}); run the recipe again")
        rows.append(row)
    return {
        "comparisons": len(rows),
        "annotation_ids": sorted({row["annotation_id"] for row in rows} - {""}, key=_by_number),
        "annotator_ids": sorted({row["annotator_id"] for row in rows} - {""}, key=_by_number),
    }


def _by_number(identity: str) -> tuple[int, str]:
    return (int(identity) if identity.isdigit() else 0, identity)


def lineage_tree(lineage: dict[str, Any]) -> Tree:
    """The lineage as a tree on the terminal."""
    aliases = "".join(f" @{alias}" for alias in lineage["aliases"])
    root = Tree(f"[bold]{lineage['model']}[/bold]{aliases}")
    _add_inputs(root, lineage)
    return root


def _add_inputs(branch: Tree, node: dict[str, Any]) -> None:
    for name, child in node.get("inputs", {}).items():
        if "see" in child:
            branch.add(f"{name}: {child['stage']} {child['see'][:12]} (as above)")
            continue
        label = f"{name}: {child['stage']} {child['key'][:12]}  {child['model'] or ''}  run {child['run_id'][:8]}"
        _add_inputs(branch.add(label + _annotations(child)), child)


def _annotations(node: dict[str, Any]) -> str:
    if "comparisons" not in node:
        return ""
    ids = node["annotation_ids"]
    more = " …" if len(ids) > SHOWN_ANNOTATIONS else ""
    who = f" by {len(node['annotator_ids'])} annotators" if node["annotator_ids"] else ""
    shown = f": {', '.join(ids[:SHOWN_ANNOTATIONS])}{more}" if ids else ""
    return f"\n{node['comparisons']} comparisons from {len(ids)} annotations{who}{shown}"
