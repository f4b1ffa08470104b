"""What `rlhf gc` removes and what it never removes, on a real MLflow store."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from alignment.artifacts import Artifact, directory_digest
from alignment.config.stages import SFTConfig, TokenizerConfig
from alignment.journal import Journal
from flows.locks import held_locks, is_current, open_lock, take
from flows.operations import gc
from flows.releases.lineage import lineage
from flows.releases.report import load_release, log_release
from flows.tracking import registry, runs
from flows.tracking.runner import find
from tests.flows.tiny import Counted, run_stage, text_model, write_model


def comparisons(out: Path, journal: Journal) -> Mapping[str, float]:
    """A stage that leaves what lineage reads."""
    row = {"id": "c1", "annotation_id": "7", "annotator_id": "3"}
    (out / "comparisons.jsonl").write_text(json.dumps(row) + "\n")
    return {"comparisons": 1.0}


def pipeline(release: str = "", seed: int = 0) -> dict[str, Artifact]:
    """A small chain of stages under one pipeline's run; with a name it makes a release."""
    with runs.pipeline_run("tiny", recipe=SFTConfig()) as run_id:
        made = {"corpus": run_stage("corpus", Counted(), config=TokenizerConfig(), seed=seed)}
        made["sft"] = run_stage("sft", text_model, config=SFTConfig(), inputs=made, model="sft", seed=seed)
        model = {"model": made["sft"]}
        made["labeling"] = run_stage("labeling", Counted(), config=SFTConfig(), inputs=model, seed=seed)
        said = {"labelled": made["labeling"]}
        made["comparisons"] = run_stage("comparisons", comparisons, config=SFTConfig(), inputs=said, seed=seed)
        given = {"sft": made["sft"], "comparisons": made["comparisons"]}
        made["ppo"] = run_stage("ppo", text_model, config=SFTConfig(), inputs=given, model="policy", seed=seed)
        if release:
            policy = {"policy": made["ppo"]}
            made["evaluate"] = run_stage("evaluate", Counted(), config=SFTConfig(), inputs=policy, seed=seed)
            log_release(run_id, {"release": release, "seed": seed})
            registry.set_alias(str(made["ppo"].model), "champion")
    return made


def places(found: list[gc.Item], *kinds: str) -> set[str]:
    return {Path(item.place).name for item in found if item.kind in kinds}


def test_after_a_collection_lineage_report_and_a_cached_rerun_are_as_before(home: Path) -> None:
    made = pipeline("tiny-1")
    abandoned = run_stage("corpus", Counted(), config=TokenizerConfig(vocab_size=300))
    before = {name: directory_digest(one.path) for name, one in made.items()}
    found = gc.plan(0)
    assert places(found, "output") == {one.path.name for one in (*made.values(), abandoned)}
    assert places(found, "stored") == {abandoned.run_id} and not places(found, "version")
    assert {one.path.name for one in made.values()} <= {path.name for path in (home / "artifacts").iterdir()}
    assert gc.remove_items(found) == []
    assert not list((home / "artifacts").iterdir()) and (home / "mlflow.db").exists()
    walked = lineage("policy@champion")
    assert walked["inputs"]["comparisons"]["annotation_ids"] == ["7"]
    assert walked["inputs"]["comparisons"]["inputs"]["labelled"]["inputs"]["model"]["inputs"]["corpus"]["digest"]
    assert load_release("tiny-1")["seed"] == 0
    again = pipeline("tiny-1")
    assert all(one.cached for one in again.values())
    assert {name: directory_digest(one.path) for name, one in again.items()} == before
    assert mlflow.pyfunc.load_model("models:/policy@champion")
    assert find("corpus", abandoned.key, home) is None  # it is made again, and its figures stay
    assert MlflowClient().get_run(abandoned.run_id).data.metrics["final/loss"] == 0.25
    remade = run_stage("corpus", Counted(), config=TokenizerConfig(vocab_size=300))
    assert not remade.cached and remade.run_id != abandoned.run_id


def test_what_is_recent_stays(home: Path) -> None:
    pipeline()
    leftover = home / "artifacts" / "sft-0123456789abcdef.download"
    leftover.mkdir()
    (home / "artifacts" / "ppo-0123456789abcdef.partial").mkdir()
    assert places(gc.plan(30), "leftover") == {leftover.name} and len(gc.plan(30)) == 1


def test_what_led_to_nothing_goes_and_what_people_said_stays(home: Path) -> None:
    with runs.pipeline_run("tiny", recipe=SFTConfig()):
        corpus = run_stage("corpus", Counted(), config=TokenizerConfig())
        prompts = run_stage("prompts", Counted(), config=TokenizerConfig())
        run_stage("labeling", Counted(), config=SFTConfig(), inputs={"prompts": prompts})
    assert places(gc.plan(0), "stored") == {corpus.run_id}


def test_versions_go_only_when_asked_for_and_never_one_that_another_needs(home: Path) -> None:
    first, second = pipeline("tiny-1"), pipeline(seed=1)
    registry.set_alias(str(first["ppo"].model), "champion")
    loose = run_stage("sft", text_model, config=SFTConfig(epochs=9), model="sft")
    assert not places(gc.plan(0), "version", "stored")
    registry.set_alias(str(second["ppo"].model), "candidate")
    found = gc.plan(0, superseded=True)
    assert [item.place for item in found if item.kind == "version"] == [loose.model]
    MlflowClient().delete_registered_model_alias("policy", "candidate")
    found = gc.plan(0, superseded=True)
    gone = {str(second["sft"].model), str(second["ppo"].model), str(loose.model)}
    # What people judged is kept for good, and what it was made from: the model whose responses they saw.
    assert {item.place for item in found if item.kind == "version"} == gone - {str(second["sft"].model)}
    sizes = {item.place: item.size for item in found if item.kind == "stored"}
    assert sizes.keys() >= {second["ppo"].run_id, loose.run_id} and min(sizes.values()) > 1000
    assert gc.remove_items(found) == []
    assert not registry.version_exists(str(loose.model)) and registry.version_exists(str(second["sft"].model))
    assert lineage("policy@champion")["model"] == first["ppo"].model
    weights = [path.parent.name for path in (home / "mlruns").rglob("model.safetensors")]
    assert len(weights) == 3
    assert pipeline(seed=1)["ppo"].model == "models:/policy/3"


def test_an_alias_that_came_meanwhile_saves_a_version(home: Path) -> None:
    made = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    found = gc.plan(0, superseded=True)
    registry.set_alias(str(made.model), "champion")
    (words,) = gc.remove_items([item for item in found if item.kind == "version"])
    assert "it is champion now" in words and registry.version_exists(str(made.model))
    (stored,) = [item for item in found if item.kind == "stored"]
    assert "sft/1 is made from it" in gc.remove_items([stored])[0]
    assert mlflow.pyfunc.load_model("models:/sft@champion")


def test_an_output_that_mlflow_does_not_have_whole_stays(home: Path) -> None:
    made = pipeline("tiny-1")
    for run, name in ((made["comparisons"], "comparisons.jsonl"), (made["sft"], "model.safetensors")):
        for path in list((home / "mlruns").rglob(name)):
            if run.run_id in str(path) or name == "model.safetensors":
                path.unlink()
    left = {made[name].path.name for name in ("comparisons", "sft", "ppo")}
    assert not places(gc.plan(0), "output") & left


def test_what_a_running_stage_holds_stays_with_all_it_was_made_from(home: Path) -> None:
    made = pipeline()
    for one in made.values():
        if one.model:
            MlflowClient().delete_model_version(one.stage if one.stage == "sft" else "policy", "1")
    partial = home / "artifacts" / f"{made['ppo'].path.name}.partial"
    made["ppo"].path.rename(partial)
    stale = home / "artifacts" / "sft-0123456789abcdef.partial"
    stale.mkdir()
    MlflowClient().update_run(made["ppo"].run_id, status="RUNNING")
    before = gc.plan(0)
    assert places(before, "checkpoint") == {partial.name, stale.name} and made["ppo"].run_id in places(before, "stored")
    with open_lock(home, made["ppo"].path.name) as running:
        assert take(running) and held_locks(home) == {made["ppo"].path.name}
        now = gc.plan(0)
        assert places(now, "checkpoint") == {stale.name} and not places(now, "output", "stored")
        left = gc.remove_items(before)  # as if it had begun after the list was made
    assert left and all(words.endswith("is in use now") and partial.stem in words for words in left[:1])
    assert partial.is_dir() and not stale.exists()


def test_the_labelling_that_waits_for_people_stays_however_long(home: Path) -> None:
    waiting = home / "artifacts" / "labeling-0123456789abcdef.partial"
    waiting.mkdir(parents=True)
    os.utime(waiting, (0, 0))
    assert gc.plan(0) == []


def test_a_lock_whose_file_went_is_not_held(home: Path) -> None:
    with open_lock(home, "sft-1") as first:
        assert take(first) and is_current(first)
        (home / "locks" / "sft-1.lock").unlink()
        assert not is_current(first)
        with open_lock(home, "sft-1") as second:
            assert take(second) and is_current(second) and not is_current(first)
    old = home / "locks" / "sft-1.lock"
    os.utime(old, (0, 0))
    assert [item.place for item in gc.plan(0)] == [str(old)]
    assert gc.remove_items(gc.plan(0)) == [] and not old.exists()


def test_logs_and_fetched_copies_go_when_they_are_old(home: Path) -> None:
    for path in (home / "logs" / "runs" / "r.jsonl", home / "fetched" / "sft-1" / "output" / "x"):
        path.parent.mkdir(parents=True)
        path.write_text("x")
        os.utime(path, (0, 0))
    assert [item.kind for item in gc.plan(30)] == ["log"]  # the directory of the copy is new
    os.utime(home / "fetched" / "sft-1" / "output", (0, 0))
    os.utime(home / "fetched" / "sft-1", (0, 0))
    found = gc.plan(30)
    assert places(found, "log") == {"r.jsonl"} and places(found, "fetched") == {"sft-1"}
    (home / "annotations.db").write_text("dear")
    gc.remove_items(found)
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) >= ["annotations.db", "mlflow.db"]
    assert not (home / "fetched" / "sft-1").exists()


def test_a_collection_that_is_killed_leaves_nothing_half_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pipeline("tiny-1")
    (item,) = [item for item in gc.plan(0) if item.place == str(made["corpus"].path)]

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            gc.remove_items([item])
    assert not made["corpus"].path.exists()
    (rest,) = places(gc.plan(0), "leftover")
    assert rest.startswith(f"{made['corpus'].path.name}.replaced-")
    assert pipeline("tiny-1")["corpus"].cached


def test_what_was_removed_is_written_down(home: Path) -> None:
    write_model(home / "fetched" / "m")
    found = [gc.Item(kind="fetched", place=str(home / "fetched" / "m"), size=3, why="old")]
    assert json.loads(gc.write_removal_log(found).read_text())[0]["size"] == 3
    assert time.strftime("%Y") in gc.write_removal_log(found).name
