"""`rlhf report`: the figures of a release, read from MLflow."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from rich.console import Group
from rich.table import Table
from rich.text import Text

from alignment.bounded import read_json
from alignment.criteria import GOLD_FIGURES
from alignment.errors import ArtifactError
from flows.releases.versions import TAG_MODEL_OF, TAG_RELEASE
from flows.tracking import links, runs
from flows.tracking.registry import name_and_number

MANIFEST = "report/release.json"
TAG_GATE = "rlhf.gate"
MODELS = ("base", "sft", "policy")


def log_release(run_id: str, manifest: Mapping[str, Any]) -> None:
    """Log a release's manifest to the pipeline's run, for `load_release`."""
    client = mlflow.MlflowClient()
    client.log_dict(run_id, dict(manifest), MANIFEST)
    client.update_run(run_id, name=str(manifest["release"]))
    gate = manifest.get("gate") or {"passed": False, "missed": []}
    for part, model in (manifest.get("models") or {}).items():
        client.set_tag(run_id, f"{TAG_MODEL_OF}{part}", str(model))
    client.set_tag(run_id, TAG_GATE, "passed" if gate["passed"] else "; ".join(gate["missed"])[: runs.LONGEST_TAG])
    client.set_tag(run_id, TAG_RELEASE, str(manifest["release"]))


def load_release(release: str = "") -> dict[str, Any]:
    """The manifest of a release, by default the newest. Raises ArtifactError when there is none."""
    return read_manifest(release_run(release))


def release_run(release: str = "") -> Run:
    """The pipeline's run of a release, by default the newest. Raises ArtifactError when there is none."""
    matching = runs.search({TAG_RELEASE: release}) if release else newest_releases()
    if not matching:
        problem = f"no release '{release}'" if release else "no release yet"
        known = ", ".join(run.data.tags[TAG_RELEASE] for run in newest_releases(20))
        raise ArtifactError(f"{problem} in MLflow; {f'there are: {known}' if known else '`rlhf run town` creates one'}")
    return matching[0]


def newest_releases(count: int = 1) -> list[Run]:
    """The pipeline's runs of releases, the newest first."""
    newest = mlflow.MlflowClient().search_runs(
        [runs.experiment_id()],
        f"tags.`{TAG_RELEASE}` LIKE '%'",
        max_results=count,
        order_by=["attributes.end_time DESC"],
    )
    return list(newest)


def read_manifest(run: Run) -> dict[str, Any]:
    """The manifest of the release of a pipeline's run. Raises ArtifactError if it is gone or damaged."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=MANIFEST, dst_path=directory
            )
        except (MlflowException, OSError) as error:
            raise ArtifactError(f"run {run.info.run_id} no longer has its {MANIFEST}; run the recipe again") from error
        return _manifest(Path(path), run.info.run_id)


def _manifest(path: Path, run_id: str) -> dict[str, Any]:
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"the {MANIFEST} of run {run_id} cannot be read: {error}; run the recipe again") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"the {MANIFEST} of run {run_id} holds no object; run the recipe again")
    return manifest


def pages(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The addresses of a release's pages in MLflow, by title; empty for a store without a server."""
    policy, run_id = (manifest.get("models") or {}).get("policy"), manifest.get("mlflow_run_id")
    addresses: dict[str, str | None] = {}
    if policy:
        name, number = name_and_number(str(policy))
        addresses = {"model card": links.model_page(name, number), "all versions": links.registry_page(name)}
    if run_id:
        addresses["report"] = links.mlflow_page(str(run_id), "/artifacts")
    return {title: address for title, address in addresses.items() if address is not None}


def report_view(manifest: Mapping[str, Any]) -> Group:
    """A release as tables for the terminal."""
    head = Text(f"release {manifest.get('release')}   seed {manifest.get('seed')}", style="bold")
    parts = [
        head,
        _models(manifest),
        _headlines(manifest),
        _reward_model(manifest),
        _unused(manifest),
        _stages(manifest),
    ]
    return Group(*(part for part in parts if part is not None))


def _models(manifest: Mapping[str, Any]) -> Table | None:
    """Base, SFT and policy: gold rates if there is a judge, the reward model's score, length and held-out loss."""
    gold, columns = manifest.get("gold") or {}, {}
    for title, key in (("reward", "reward"), ("tokens", "length_tokens"), ("held-out loss", "tax")):
        columns[title] = manifest.get(key) or {}
    if not gold and not any(columns.values()):
        return None
    criteria = GOLD_FIGURES if gold else ()
    table = Table(title="held-out prompts")
    table.add_column("model")
    for name in (*criteria, *columns):
        table.add_column(name, justify="right")
    for model in MODELS:
        rates = gold.get(model) or {}
        table.add_row(
            model,
            *(_figure(rates.get(name)) for name in criteria),
            *(_figure(values.get(model)) for values in columns.values()),
        )
    return table


def _headlines(manifest: Mapping[str, Any]) -> Text:
    win = manifest.get("win_rate_vs_sft") or {}
    by_reward = manifest.get("judge") == "reward model"
    text = Text()
    if by_reward:
        text.append(
            "No gold judge: rewards and wins below are measured by the reward model. A method that trains on "
            "this reward, such as PPO, is expected to raise them.\n"
        )
    if win:
        text.append(
            f"policy beats SFT on {_figure(win.get('rate'))} of {win.get('decided')} decided prompts "
            f"(95 % interval {_figure(win.get('low'))} to {_figure(win.get('high'))})"
            f"{' by the reward model' if by_reward else ''}\n"
        )
    text.append(
        f"KL to SFT {_figure(manifest.get('kl_to_sft'))} nats per response (method: {manifest.get('method', 'ppo')})"
    )
    if manifest.get("chosen_step") is not None:
        text.append(f"; step {manifest['chosen_step']}, chosen by held-out labels")
    gate = manifest.get("gate")
    if gate:
        text.append("\nrelease gate passed: champion" if gate["passed"] else "\ncandidate, not champion:")
        text.append("".join(f"\n  {line}" for line in gate["missed"]))
        against = gate.get("against")
        if against and gate["passed"]:
            text.append(f"\n  it replaced {against['against']}")
    return text


def _reward_model(manifest: Mapping[str, Any]) -> Table | None:
    figures = dict(manifest.get("reward_model") or {})
    if not figures:
        return None
    figures |= figures.pop("by_criterion", None) or {}
    table = Table(title=f"reward model, from {manifest.get('comparisons')} comparisons", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), _figure(value))
    return table


def _unused(manifest: Mapping[str, Any]) -> Text | None:
    """Rows that were not used, so that none is dropped silently."""
    spaces = str.maketrans("_.", "  ")
    lines = [
        f"{stage}: " + ", ".join(f"{count} {name.translate(spaces)}" for name, count in counts.items())
        for stage, counts in (manifest.get("put_aside") or {}).items()
        if counts
    ]
    return Text("unused rows (reasons in each stage's output)\n  " + "\n  ".join(lines)) if lines else None


def _stages(manifest: Mapping[str, Any]) -> Table | None:
    seconds, cached = manifest.get("seconds") or {}, manifest.get("cached") or {}
    if not seconds:
        return None
    total = sum(value for stage, value in seconds.items() if not cached.get(stage))
    table = Table(title=f"stages: {total:.0f} s of work in this run")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("cached")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}", "cached" if cached.get(stage) else "")
    return table


def _figure(value: Any) -> str:
    """Three decimals; a dash for a missing value."""
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
