"""The base job templates in deploy/pools are what Prefect's Docker and Kubernetes workers take.

The libraries of these workers are no dependencies: where they are not installed, the last test is skipped.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseWorker

POOLS = Path(__file__).parents[3] / "deploy" / "pools"
KINDS = ("docker", "kubernetes")
OUR_SECRETS = {"label_studio_token", "mlflow_password", "prefect_auth"}


def template(kind: str) -> dict[str, Any]:
    """A base job template as it is read by `prefect work-pool create --base-job-template`."""
    read: dict[str, Any] = json.loads((POOLS / f"{kind}.json").read_text(encoding="utf-8"))
    return read


def defaults(kind: str) -> dict[str, Any]:
    """The variables that have a default, and what the worker gives."""
    options = template(kind)["variables"]["properties"]
    given = {"name": "eager-cat", "command": "prefect flow-run execute", "labels": {"a": "b"}, "annotations": {}}
    return given | {name: told["default"] for name, told in options.items() if "default" in told}


def filled(kind: str) -> dict[str, Any]:
    """The job of a pool without job variables."""
    job: dict[str, Any] = apply_values(template(kind)["job_configuration"], defaults(kind))
    return job


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_is_used_and_every_place_has_one(kind: str) -> None:
    told = template(kind)
    places = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(told["job_configuration"])))
    assert places == set(told["variables"]["properties"])
    Draft202012Validator.check_schema(told["variables"])
    Draft202012Validator(told["variables"]).validate(defaults(kind))
    assert "{{" not in json.dumps(filled(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_files_and_no_values(kind: str) -> None:
    environment = defaults(kind)["env"]
    secret = {name: value for name, value in environment.items() if re.search("KEY|PASSWORD|AUTH|TOKEN", name)}
    assert set(secret.values()) == {f"/run/secrets/{name}" for name in OUR_SECRETS}
    assert all(name.endswith("_FILE") for name in secret) and environment["RLHF_HOME"] == "/var/lib/rlhf"


def test_both_pools_are_told_the_same() -> None:
    docker, kubernetes = (defaults(kind) for kind in KINDS)
    assert docker["env"] == kubernetes["env"] and docker["image"] == kubernetes["image"]
    job = filled("kubernetes")["job_manifest"]["spec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in job["containers"][0]["volumeMounts"]}
    assert {volume["name"] for volume in job["volumes"]} == set(mounted)
    assert {volume.split(":")[1] for volume in docker["volumes"]} == {mounted["home"], mounted["secrets"]}
    assert job["securityContext"]["runAsUser"] == 10001
    assert filled("docker")["container_create_kwargs"]["user"] == "10001:10001"


@pytest.mark.parametrize("kind", KINDS)
def test_the_worker_makes_a_job_of_it(kind: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip(f"prefect_{kind}")
    request.getfixturevalue("prefect_server")  # which is asked for blocks that values name
    worker = BaseWorker.get_worker_class_from_type(kind)
    assert worker is not None
    changed = {"image": "rlhf-flows:mine"} | ({"gpus": "1"} if kind == "kubernetes" else {})
    made = asyncio.run(worker.job_configuration.from_template_and_values(template(kind), changed))
    made.prepare_for_flow_run(FlowRun(name="eager-cat", flow_id=uuid4()))
    job = json.dumps(made.model_dump(mode="json"), default=str)
    assert "rlhf-flows:mine" in job and "/var/lib/rlhf" in job and "flow-run execute" in job
    if kind == "kubernetes":
        container = made.job_manifest["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"name": "RLHF_HOME", "value": "/var/lib/rlhf"} in container["env"]
