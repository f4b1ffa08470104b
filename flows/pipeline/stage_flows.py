"""Flows that run a single stage, for deployments. Its inputs come from the cache, or run first."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from alignment.artifacts import Artifact
from alignment.errors import ConfigError
from alignment.records import write_records
from flows.annotation import accounts
from flows.annotation.label_studio import annotation_store, client
from flows.annotation.open import open_plan, planning
from flows.annotation.written import written_demonstrations
from flows.pipeline.dag import keys, steps
from flows.pipeline.flow import run_stage_alone
from flows.recipe.schema import Recipe, check_files, load_recipe
from flows.tracking import links
from labeling.collection import sync_collection

TOWN = load_recipe("town")  # the default of the forms
WRITING = "demonstrations.jsonl"


@flow(name="pretrain", persist_result=False)
def pretrain(recipe: Recipe = TOWN) -> Artifact:
    """A base model, from scratch or from a checkpoint."""
    return run_stage_alone.fn(recipe, "pretrain")


@flow(name="sft", persist_result=False)
def sft(recipe: Recipe = TOWN) -> Artifact:
    """Supervised fine-tuning on the demonstrations."""
    return run_stage_alone.fn(recipe, "sft")


@flow(name="collect-comparisons", persist_result=False)
def collect_comparisons(recipe: Recipe = TOWN) -> Artifact:
    """Comparisons from people in Label Studio, or from the town's simulated annotators."""
    if recipe.labeling is None:
        raise ConfigError(f"the recipe {recipe.name} has no section `labeling`, so there is nothing to label: add one")
    return run_stage_alone.fn(recipe, "comparisons")


@flow(name="reward-model", persist_result=False)
def reward_model(recipe: Recipe = TOWN) -> Artifact:
    """The reward model, from the comparisons of the recipe."""
    return run_stage_alone.fn(recipe, "reward")


@flow(name="ppo", persist_result=False)
def ppo(recipe: Recipe = TOWN) -> Artifact:
    """The policy, by PPO or another `align.method`."""
    return run_stage_alone.fn(recipe, recipe.align.method)


@flow(name="evaluate", persist_result=False)
def evaluate(recipe: Recipe = TOWN) -> Artifact:
    """Base, SFT and policy side by side on held-out prompts."""
    return run_stage_alone.fn(recipe, "evaluate")


@flow(name="collect-demonstrations", persist_result=False)
def collect_demonstrations(recipe: Recipe = TOWN) -> dict[str, Any]:
    """Open the project in which people write answers, and export the answers written so far.

    Idempotent: running it again exports new answers. The returned file can be used in `demonstrations.sources` with
    format `records`.
    """
    if recipe.labeling is None or not recipe.labeling.demonstrations.prompts:
        raise ConfigError(f"the recipe {recipe.name} asks for no written answers: set labeling.demonstrations.prompts")
    check_files(recipe)
    draft = recipe.labeling.demonstrations.draft
    if not (draft and recipe.labeling.responses):
        run_stage_alone.fn(recipe, "responses" if draft else "prompts")
    needed, file, count = open_writing(recipe)
    get_run_logger().info("%d of %d answers are written: %s", count, needed, file)
    return {"asked": needed, "written": count, "file": str(file)}


def open_writing(recipe: Recipe) -> tuple[int, Path, int]:
    """Open or extend the writing project only; returns the number of answers needed, their file and its row count."""
    assert recipe.labeling is not None
    config = recipe.labeling.with_prompts({"ranking": 0, "pairwise": 0})
    writing = recipe.model_copy(update={"labeling": config})
    plan = planning(writing, keys(steps(writing)), recipe.name)
    plan = replace(plan, planned=replace(plan.planned, tasks={"demonstration": plan.planned.tasks["demonstration"]}))
    with client(plan.config) as owner, closing(annotation_store()) as store:
        for email, state in accounts.ensure_people(owner, plan.config.people).items():
            if state == "signed up":
                get_run_logger().warning(accounts.NOT_CONFIRMED.format(email))
        opened, _ = open_plan(owner, plan)
        links.link_projects(opened.urls)
        sync_collection(owner, opened, store)
        rows, bad = written_demonstrations(store, [batch.project.id for batch in opened.batches])
    write_records(plan.directory / "rejected.jsonl", bad)
    write_records(plan.directory / WRITING, rows)
    return sum(batch.needed for batch in opened.batches), plan.directory / WRITING, len(rows)
