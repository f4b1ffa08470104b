"""Outputs that were published under the golden keys are found: their directories, digests and tags keep their form.

Everything that is stored is written out here by hand, so that a change of names in the code shows.
"""

import hashlib
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from alignment.artifacts import Artifact
from flows.pipeline.dag import steps
from flows.recipe.schema import load_recipe
from flows.tracking.runner import run_step
from tests.conftest import TINY

KEYS = json.loads((Path(__file__).parents[2] / "golden" / "keys.json").read_text(encoding="utf-8"))["tiny"]
MODELS = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}


def publish(home: Path, stage: str, key: str) -> str:
    """An output as a run of the first version published it, and its run in MLflow; returns the run's id."""
    output = home / "artifacts" / f"{stage}-{key[:16]}"
    output.mkdir(parents=True)
    (output / "result.json").write_text('{"loss": 0.25}')
    contents = hashlib.sha256(b'{"loss": 0.25}').hexdigest()
    digest = hashlib.sha256(f"result.json\0{contents}\n".encode()).hexdigest()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("rlhf")
    number = client.create_experiment("rlhf") if experiment is None else experiment.experiment_id
    tags = {"rlhf.stage": stage, "rlhf.key": key, "rlhf.digest": digest, "rlhf.seconds": "1.5"}
    run_id = str(client.create_run(number, tags=tags, run_name=stage).info.run_id)
    if stage in MODELS:
        client.create_registered_model(MODELS[stage])
        client.create_model_version(MODELS[stage], output.as_uri(), run_id)
        client.set_tag(run_id, "rlhf.model", f"models:/{MODELS[stage]}/1")
    client.set_terminated(run_id)
    return run_id


def test_every_stage_of_a_published_run_is_found(home: Path) -> None:
    published = {stage: publish(home, stage, key) for stage, key in KEYS.items()}

    def fail(step, *_: object) -> dict[str, float]:
        pytest.fail(f"stage {step.name} was run again")

    artifacts: dict[str, Artifact] = {}
    for name, step in steps(load_recipe(str(TINY))).items():
        inputs = {given: artifacts[source] for given, source in step.inputs.items()}
        artifacts[name] = run_step(step, inputs, fail)
        assert artifacts[name].cached and artifacts[name].run_id == published[name]
        assert artifacts[name].result() == {"loss": 0.25} and artifacts[name].seconds == 1.5
        assert artifacts[name].model == (f"models:/{step.model}/1" if name in MODELS else None)
