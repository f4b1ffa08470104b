"""`rlhf deploy` on a real Prefect server: what it creates, idempotence, and what its deployments refuse."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from alignment.errors import ConfigError
from alignment.methods import METHODS
from flows.deployments import deploy as deploying
from flows.deployments.deploy import deploy, missing_files, read_file, recipe_specs
from flows.pipeline.stage_flows import TOWN
from flows.recipe.schema import Recipe, check_files, load_recipe
from flows.stack.processes import NotReady
from flows.tracking import runs
from flows.tracking.links import TAG_NOTE, TAG_PAGE, mlflow_page
from tests.conftest import HERE, TINY

pytestmark = pytest.mark.server
STAGES = ["pretrain", "sft", "collect-demonstrations", "collect-comparisons", "reward-model", "ppo", "evaluate"]
ROOT = HERE.parent


@pytest.fixture(scope="module")
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def made(client: SyncPrefectClient) -> list[str]:
    """Everything set up, the tiny recipe too; the names."""
    return deploy([str(TINY)], slots=2)


def shown(client: SyncPrefectClient, names: list[str]) -> list[dict[str, Any]]:
    """The deployments as the server has them, without times and ids."""
    fields = {"name", "description", "tags", "parameters", "parameter_openapi_schema", "entrypoint", "pull_steps"}
    fields |= {"work_pool_name", "job_variables", "enforce_parameter_schema", "concurrency_options"}
    found = [client.read_deployment_by_name(name) for name in names if "/" in name]
    rows = [one.model_dump(include=fields) | {"pull_steps": one.pull_steps or []} for one in found]
    schedules = [[(each.slug, getattr(each.schedule, "interval", None)) for each in one.schedules] for one in found]
    limits = [one.global_concurrency_limit and one.global_concurrency_limit.limit for one in found]
    return [{**row, "schedules": s, "limit": n} for row, s, n in zip(rows, schedules, limits, strict=True)]


def test_the_file_names_the_pipeline_every_stage_promotion_and_the_watcher() -> None:
    pools, specs = read_file()
    assert [one.name for one in specs] == ["pipeline", *STAGES, "promote", "rollback", "watch"]
    assert {one.work_pool.name for one in specs} == {*pools} == {"train", "ops"}
    assert [one.name for one in specs if one.schedules] == ["watch"]
    assert (ROOT / "deploy" / "prefect.yaml").resolve() == deploying.FILE


def test_an_unknown_word_in_the_file_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    values = yaml.safe_load(deploying.FILE.read_text())
    values["deployments"][0]["shedules"] = []
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="shedules"):
        read_file(tmp_path / "prefect.yaml")


def test_a_second_time_changes_nothing_and_what_differs_is_put_right(
    made: list[str], client: SyncPrefectClient
) -> None:
    assert {"pool train", "rlhf/town", "rlhf/hh", "rlhf/oasst", "rlhf/tiny"} <= {*made}
    before = shown(client, made)
    assert deploy([str(TINY)]) == made and shown(client, made) == before
    town = client.read_deployment_by_name("rlhf/town")
    client.update_deployment(town.id, DeploymentUpdate(description="mine", tags=["mine"]))
    watch = client.read_deployment_by_name("watch/watch")
    client.update_deployment_schedule(watch.id, watch.schedules[0].id, active=False)
    deploy()
    now = client.read_deployment_by_name("rlhf/town")
    assert (now.description, now.tags) == (town.description, town.tags)
    assert not client.read_deployment_by_name("watch/watch").schedules[0].active  # a person paused it


def test_limits_are_kept_unless_they_are_named(made: list[str], client: SyncPrefectClient) -> None:
    assert client.read_work_pool("train").concurrency_limit == 2
    assert client.read_work_pool("ops").concurrency_limit is None
    deploy(slots=3)
    deploy()
    assert client.read_work_pool("train").concurrency_limit == 3
    watch = client.read_deployment_by_name("watch/watch")
    assert watch.global_concurrency_limit is not None and watch.global_concurrency_limit.limit == 1


@pytest.mark.parametrize(("listed", "slots"), [("GPU 0: a\nGPU 1: b\n", 2), ("", 1), (None, 1)])
def test_a_slot_is_an_accelerator(monkeypatch: pytest.MonkeyPatch, listed: str | None, slots: int) -> None:
    def asked(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        if listed is None:
            raise FileNotFoundError("nvidia-smi")
        return subprocess.CompletedProcess([], 0, stdout=listed)

    monkeypatch.setattr(deploying.subprocess, "run", asked)
    assert deploying.accelerators() == slots


@pytest.mark.long
def test_the_prefect_command_makes_the_same_from_the_same_file(
    made: list[str], client: SyncPrefectClient, prefect_server: str
) -> None:
    """`prefect deploy --all` after `rlhf deploy` changes nothing."""
    deploy()
    before = shown(client, made)
    file = ["--prefect-file", "deploy/prefect.yaml"]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", *file]
    told = {**deploying_environment(), "PREFECT_API_URL": prefect_server}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(client, made) == before


class Failing(BaseHTTPRequestHandler):
    """Prefect behind a proxy that answers 503; with `flows` in its path a request is answered."""

    def do_GET(self) -> None:
        self.send_response(422 if "csrf-token" in self.path else 503)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        flow = json.dumps({"id": str(uuid4()), "name": "watch", "created": None, "updated": None}).encode()
        self.send_response(201 if self.path.endswith("/flows/") else 503)
        self.end_headers()
        self.wfile.write(flow if self.path.endswith("/flows/") else b"<html>no server")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("pools", [True, False])
def test_a_prefect_that_fails_is_named_in_one_sentence(pools: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While pools are created, and while deployments are."""
    if not pools:
        monkeypatch.setattr(deploying, "set_up_pool", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        settings = temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0})
        with settings, pytest.raises(NotReady, match="Prefect answers 503"):
            deploying.deploy()
        server.shutdown()


def deploying_environment() -> dict[str, str]:
    """Ours without what would lead to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def test_recipes_are_deployments_with_every_value_filled_in(made: list[str], client: SyncPrefectClient) -> None:
    for name in ("town", "hh", "oasst", str(TINY)):
        recipe = load_recipe(name)
        deployment = client.read_deployment_by_name(f"rlhf/{recipe.name}")
        given = deployment.parameters["recipe"]
        assert given.keys() == Recipe.model_fields.keys()
        if given["data_root"] == recipe.data_root:  # else its files are here, and named by absolute paths
            assert Recipe.model_validate(given) == recipe
        assert deployment.description == recipe.description and "recipe" in deployment.tags
    hh = client.read_deployment_by_name("rlhf/hh")
    assert hh.parameters["recipe"]["corpus"]["sources"][0]["path"].startswith("data://")
    assert hh.parameters["recipe"]["data_root"] == str(Path(load_recipe("hh").data_root).absolute())
    assert {path for _, path in Recipe.model_validate(hh.parameters["recipe"]).paths()} == {
        str(Path.cwd() / path) for _, path in load_recipe("hh").paths()
    }
    for name in ("hh", "town"):
        steps = client.read_deployment_by_name(f"rlhf/{name}").pull_steps
        assert steps == [{deploying.SET_DIRECTORY: {"directory": "."}}]


def own_recipe(directory: Path, **files: str) -> Path:
    """A recipe in a directory whose paths are relative to it; the files that it names are there."""
    directory.mkdir()
    (directory / "text.txt").write_text("A text.")
    for name in ("demos", "prompts", "pairs"):
        (directory / f"{name}.jsonl").write_text('{"prompt": "Why?"}\n')
    rows = {name: {"sources": [{"path": f"{file}.jsonl"}]} for name, file in files.items()}
    values = {"town": None, "labeling": None, "pretrain": {"checkpoint": "owner/model", "epochs": 0}}
    corpus = {"sources": [{"path": "./text.txt"}]}
    (directory / "mine.yaml").write_text(yaml.safe_dump({**values, "corpus": corpus, **rows}))
    return directory / "mine.yaml"


FILES = {"demonstrations": "demos", "prompts": "prompts", "comparisons": "pairs"}


def test_a_recipe_that_is_deployed_from_another_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run works in an empty directory, where only absolute paths lead to the recipe's files."""
    recipe = own_recipe(tmp_path / "project", **FILES)
    for name in ("elsewhere", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (spec,) = [one for one in recipe_specs(read_file()[1][0], [str(recipe)]) if one.name == "mine"]
    monkeypatch.chdir(tmp_path / "work")
    deployed = Recipe.model_validate(spec.parameters["recipe"])
    check_files(deployed)
    assert deployed.corpus.sources[0].path == str(tmp_path / "project" / "text.txt")
    assert deployed.pretrain.checkpoint == "owner/model" and not [*missing_files([spec])]
    (tmp_path / "project" / "demos.jsonl").unlink()
    assert [line.partition(" is ")[0] for line in missing_files([spec])] == [
        f"rlhf/mine: {tmp_path / 'project' / 'demos.jsonl'}"
    ]


def test_a_relative_path_that_leads_nowhere_is_refused_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = own_recipe(tmp_path / "project", **{**FILES, "comparisons": "pears"})
    monkeypatch.setattr(deploying, "set_up_pool", lambda *_: pytest.fail("something was created"))
    with pytest.raises(
        ConfigError, match=r"comparisons\.sources\.0\.path of .* is 'pears\.jsonl', which is neither in"
    ):
        deploy([str(recipe)])


def test_a_run_of_a_worker_copies_no_files(made: list[str], client: SyncPrefectClient, tmp_path: Path) -> None:
    """The worker's current directory and the one of `rlhf deploy` may hold gigabytes."""
    for name in ("worker", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "worker" / "large.bin").write_bytes(b"weights")
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name("watch/watch").id)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "ops", "--type", "process", "--run-once"]
    environment = {**os.environ, "PREFECT_API_URL": str(client.api_url), "RLHF_HOME": str(tmp_path / "home")}
    environment |= {"TMPDIR": str(tmp_path / "temporary")}
    worker = subprocess.Popen(command, cwd=tmp_path / "worker", env=environment, stdout=subprocess.DEVNULL)
    files: set[str] = set()
    while worker.poll() is None:
        files |= {path.name for path in (tmp_path / "temporary").rglob("*") if path.suffix in (".bin", ".py", ".toml")}
        time.sleep(0.05)
    logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    messages = [log.message for log in logs]
    assert client.read_flow_run(run.id).state_type == StateType.COMPLETED, messages
    assert not files and "Running 1 deployment pull step(s)" in messages


def test_forms_of_stages_begin_with_the_town(made: list[str], client: SyncPrefectClient) -> None:
    for name in STAGES:
        schema = client.read_deployment_by_name(f"{name}/{name}").parameter_openapi_schema
        assert schema is not None
        assert Recipe.model_validate(schema["properties"]["recipe"]["default"]) == TOWN


def test_two_deployments_of_one_name_are_refused(tmp_path: Path) -> None:
    pipeline = read_file()[1][0]
    for name in ("pipeline", "town"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"town": {}, "labeling": {}}))
        with pytest.raises(ConfigError, match=f"a deployment {name} exists already"):
            recipe_specs(pipeline, [str(path)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ppo": {"kl_coef": -1}}, "'recipe.ppo.kl_coef'. Failure reason: -1 is less than the minimum of 0"),
        ({"ppo": {"kl_target": -1}}, "'recipe.ppo.kl_target'. Failure reason: -1 is less than or equal to the minimum"),
        ({"ppo": {"kl_coeff": 1}}, "'recipe.ppo'. Failure reason: Additional properties are not allowed ('kl_coeff'"),
        ({"ppo": {"steps": "many"}}, "'recipe.ppo.steps'. Failure reason: 'many' is not of type 'integer'"),
        ({"align": {"method": "x"}}, f"'x' is not one of {[method.name for method in METHODS]}"),
        ({"labeling": {"crew": {"annotators": 99}}}, "'recipe.labeling.crew.annotators'. Failure reason: 99 is"),
        ({"corpus": {"sources": [{}]}}, "'recipe.corpus.sources[0]'. Failure reason: 'path' is a required property"),
    ],
)
def test_wrong_values_are_refused_before_there_is_a_run(
    made: list[str], client: SyncPrefectClient, change: dict[str, Any], words: str
) -> None:
    tiny = client.read_deployment_by_name("rlhf/tiny")
    recipe = {"name": "x", "town": {}, "labeling": {}, **change}
    with pytest.raises(PrefectHTTPStatusError) as caught:
        client.create_flow_run_from_deployment(tiny.id, parameters={"recipe": recipe})
    assert words in str(caught.value.response.json())


def test_runs_in_mlflow_lead_back_to_prefect(workplace: Path) -> None:
    @flow(name="linked", flow_run_name="a linked run", persist_result=False)
    def linked() -> tuple[str, str]:
        with runs.pipeline_run("linked", recipe=TOWN) as run_id:
            stage = runs.open_stage_run("sft", "k", config=TOWN.sft, seed=0, version=1, inputs={}, parent=run_id)
            return run_id, stage

    found = [runs.MlflowClient().get_run(one).data.tags for one in linked()]
    for tags in found:
        assert "/runs/flow-run/" in tags[TAG_PAGE]
        assert tags[TAG_NOTE] == f"[a linked run in Prefect]({tags[TAG_PAGE]})"
    assert len({tags[TAG_PAGE] for tags in found}) == 1


def test_the_page_of_a_run_is_without_credentials(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.pipeline_run("linked", recipe=TOWN) as run_id:
        assert mlflow_page(run_id) is None  # a store in a file has no pages
        monkeypatch.setenv("RLHF_MLFLOW_PAGES", "https://me:secret@mlflow.example.org/")
        page = mlflow_page(run_id, "/artifacts")
    assert page is not None and page.startswith("https://mlflow.example.org/#/experiments/1/runs/")
    assert f"{run_id}/artifacts?" in page
