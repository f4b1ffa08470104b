"""The pipeline: one round of alignment, from corpus to a registered policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.runtime import deployment, flow_run

from alignment.artifacts import Artifact
from alignment.stage import Step
from alignment.stages import EVALUATE, REWARD
from flows.annotation.stages import LABELING
from flows.annotation.suspend import suspended_while_people_label
from flows.home import home_directory
from flows.notifications import notify, notifying
from flows.pipeline.dag import needed, steps
from flows.pipeline.tasks import run_task
from flows.recipe.schema import Recipe, check_files, check_judged
from flows.releases.card import write_cards
from flows.releases.gate import check_reward_gate
from flows.releases.head_to_head import Release
from flows.releases.manifest import release_manifest
from flows.releases.promote import promote_if_better, verdict
from flows.releases.report import log_release
from flows.releases.versions import CANDIDATE
from flows.stack.outages import watched_disk
from flows.tracking import links, logs, registry, runs

SHOWN_FIGURES = ("gold_curve.png", "criteria.png", "ppo.png", "calibration.png")


@flow(name="rlhf", persist_result=False)
def rlhf(recipe: Recipe, promote: bool = True) -> dict[str, Any]:
    """One round of alignment. Running it again skips what is unchanged; returns the release's manifest.

    `promote`: the policy becomes the candidate, and the champion if it passes the gate.
    """
    check_files(recipe)
    check_judged(recipe)
    for line in recipe.align.warnings():
        get_run_logger().warning(line)
    alone = deployment.id is None
    name = f"{recipe.name}-{recipe.seed}"  # and the policy's key, when it is there: `log_release`
    logged_recipe = recipe.model_copy(update={"notify": ()})  # who is notified is no part of the run
    parent = runs.pipeline_run(
        recipe.name, recipe=logged_recipe, flow_run_id=str(flow_run.id or ""), alone=alone, run_name=name
    )
    disk, people = watched_disk(home_directory()), suspended_while_people_label()
    with notifying(recipe.notify, f"{recipe.name}, seed {recipe.seed}"), disk, people, parent as run_id:
        links.link_pipeline(run_id)
        artifacts = run_steps(recipe, steps(recipe))
        return register(recipe, artifacts, run_id, promote=promote)


def run_steps(recipe: Recipe, chain: Mapping[str, Step], last: str = EVALUATE.name) -> dict[str, Artifact]:
    """Run `last` and the steps that it needs in order, each on the outputs of its inputs; returns artifacts by stage.

    Raises GateError when the reward model misses its gate and the policy would be optimized against it.
    """
    artifacts: dict[str, Artifact] = {}
    for name in needed(chain, last):
        step = chain[name]
        inputs = {input_name: artifacts[source] for input_name, source in step.inputs.items()}
        artifacts[name] = run_task(step, inputs)
        if step.stage is REWARD and name != last and recipe.align.chosen.follows_reward:
            check_reward_gate(artifacts[name], recipe.reward_gate)
    return artifacts


@flow(name="rlhf-stage", persist_result=False)
def run_stage_alone(recipe: Recipe, stage: str) -> Artifact:
    """Run a single stage of a recipe. Its inputs come from the cache, or run first."""
    check_files(recipe)
    chain = steps(recipe)
    if LABELING.name in needed(chain, stage):
        check_judged(recipe)
    flow_run_id = str(flow_run.id or "")
    log_file = logs.log_to_file(f"{stage}-{flow_run_id}", flow_run_id=flow_run_id, recipe=recipe.name)
    disk, people = watched_disk(home_directory()), suspended_while_people_label()
    with notifying(recipe.notify, f"{recipe.name}, stage {stage}"), disk, log_file, people:
        artifact = run_steps(recipe, chain, stage)[stage]
    if artifact.cached:
        links.link_stage(artifact.run_id, stage)
    return artifact


def register(recipe: Recipe, artifacts: Mapping[str, Artifact], run_id: str, *, promote: bool = True) -> dict[str, Any]:
    """Set the alias `candidate`, and `champion` if the gates are passed; log the release and write the model cards.

    Without `promote`, as in a sweep, the verdict on the recipe's own gate is logged and no alias is set.
    """
    log = get_run_logger()
    manifest = release_manifest(recipe, artifacts) | {"mlflow_run_id": run_id}
    release = Release(manifest, lambda: artifacts["evaluate"].path)
    if promote:
        registry.set_alias(release.policy, CANDIDATE)
        gate = promote_if_better(release, recipe.release_gate, recipe.champion_gate)
    else:
        gate = verdict(release, recipe.release_gate, recipe.champion_gate)
    manifest["gate"] = gate
    for line in gate["missed"]:
        log.warning("%s stays candidate. %s", release.policy, line)
    if gate["missed"]:
        notify("gate_failed", "\n".join([f"{release.policy} stays candidate", *gate["missed"]]))
    log_report(artifacts, manifest, run_id)
    log_release(run_id, manifest)
    write_cards(manifest)
    skipped = [stage for stage, artifact in artifacts.items() if artifact.cached]
    log.info(
        "%d of %d stages were cached%s",
        len(skipped),
        len(artifacts),
        ": nothing was run" if len(skipped) == len(artifacts) else "",
    )
    return manifest


def log_report(artifacts: Mapping[str, Artifact], manifest: Mapping[str, Any], run_id: str) -> None:
    """Log headline figures and plots to the pipeline's MLflow run, and a table on the flow run's page."""
    client = mlflow.MlflowClient()
    for of in (run_id, artifacts[manifest["method"]].run_id):  # MLflow compares versions by the runs that made them
        logged = client.get_run(of).data.metrics  # of a flow run that was interrupted here and resumed
        for name, value in headlines(manifest).items():
            if logged.get(name) != value:
                client.log_metric(of, name, value)
    for artifact in artifacts.values():
        for plot in sorted((artifact.path / "figures").glob("*.png")):
            name = f"{artifact.stage}_{plot.name}" if plot.name not in SHOWN_FIGURES else plot.name
            client.log_artifact(run_id, str(plot), f"report/{Path(name).stem}")
    client.log_artifact(run_id, str(artifacts["evaluate"].file("samples.md")), "report")
    rows = [{"figure": name, "value": f"{value:.3f}"} for name, value in headlines(manifest).items()]
    create_table_artifact(table=rows, key="headlines", description=f"release {manifest['release']}")


def headlines(manifest: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures of a release."""
    figures = {
        "win_rate_vs_sft": manifest["win_rate_vs_sft"]["rate"],
        "kl_to_sft": manifest["kl_to_sft"],
        "tax_ratio": manifest["tax"]["policy"] / manifest["tax"]["sft"],
    }
    for model, gold in (manifest["gold"] or {}).items():
        figures |= {f"gold_{model}_{name}": value for name, value in gold.items()}
    accuracy = manifest["reward_model"]["accuracy_heldout_prompts"]
    return figures | {"reward_accuracy_heldout_prompts": accuracy}
