"""Output of the commands plan, report and lineage, on a real MLflow store."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from rich.console import Console
from transformers import RwkvConfig
from typer.testing import CliRunner

from alignment.artifacts import Artifact
from alignment.config.stages import ComparisonsConfig, RewardConfig, SFTConfig, TokenizerConfig
from alignment.errors import ArtifactError, CheckpointError, ConfigError
from alignment.journal import Journal
from alignment.records import Comparison, Message, Prompt, Response, write_records
from flows.cli.main import app, main
from flows.failures import RunStopped, friendly_errors, refusing_server
from flows.pipeline.cost import checkpoint_parameters, costs, format_count, llama_parameters
from flows.pipeline.dag import keys, steps
from flows.pipeline.plan import plan, plan_table
from flows.recipe.schema import Recipe, load_recipe
from flows.releases.lineage import lineage, lineage_tree
from flows.releases.report import load_release, log_release, report_view
from flows.tracking import runs
from tests.conftest import TINY
from tests.flows.tiny import Counted, reward_model, run_stage, text_model, write_model

TOWN = Recipe(name="t", town={}, labeling={})  # type: ignore[arg-type]
HEAVY = ("torch", "mlflow", "prefect", "transformers", "label_studio_sdk")  # what `rlhf --help` does not wait for
MANIFEST: dict[str, Any] = {
    "release": "t-1",
    "seed": 4,
    "kl_to_sft": 3.25,
    "comparisons": 77,
    "gold": {"policy": {"helpful": 0.9, "truthful": 0.8, "harmless": 1.0, "score": 0.91}},
    "win_rate_vs_sft": {"rate": 0.75, "low": 0.66, "high": 0.82, "decided": 120},
    "tax": {"sft": 1.5},
    "reward_model": {"accuracy_heldout_prompts": 0.71, "ece": None},
    "seconds": {"sft": 12.0, "ppo": 30.0},
    "cached": {"sft": True, "ppo": False},
}


def words(shown: Any) -> str:
    console = Console(width=200, file=None, record=True, quiet=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_llama_parameters_are_those_of_transformers(tmp_path: Path) -> None:
    write_model(tmp_path)
    counted = checkpoint_parameters(tmp_path)
    sizes = json.loads((tmp_path / "config.json").read_text())
    tied = bool(sizes["tie_word_embeddings"])
    assert counted == llama_parameters(sizes["vocab_size"], 16, 1, 2, 2, 32, tied=tied)


def test_parameters_are_counted_in_the_files_that_are_loaded(tmp_path: Path) -> None:
    write_model(tmp_path)
    counted = checkpoint_parameters(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "consolidated.safetensors").write_bytes(weights)
    assert checkpoint_parameters(tmp_path) == counted
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1-of-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-1.safetensors"}}')
    assert checkpoint_parameters(tmp_path) == counted
    assert checkpoint_parameters(tmp_path / "nowhere") is None


def test_costs_follow_six_and_two_times_parameters_and_tokens() -> None:
    by_stage = costs(TOWN, steps(TOWN))
    n = 1024 * 128 + 4 * (4 * 128**2 + 3 * 128 * 344 + 2 * 128) + 128
    assert by_stage["sft"].parameters == n
    assert (by_stage["sft"].trained, by_stage["sft"].read) == (600 * 128 * 3, 0)
    assert by_stage["sft"].flops == 6 * n * 600 * 128 * 3
    assert by_stage["responses"].flops == 2 * n * 300 * 4 * 128


@pytest.mark.parametrize(("value", "text"), [(None, "?"), (0, "0"), (999, "999"), (1234, "1.23 k"), (40e12, "40 T")])
def test_numbers_for_people(value: int | None, text: str) -> None:
    assert format_count(value) == text


def test_a_plan_says_what_is_cached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    chain = steps(TOWN)
    assert {row.state for row in plan(TOWN)} == {"to run"}
    first = chain["town"]
    town = run_stage("town", Counted(), config=first.config, seed=first.seed, version=first.stage.version)
    corpus = run_stage("corpus", Counted(), config=chain["corpus"].config, inputs={"town": town})
    assert corpus.key == keys(chain)["corpus"]
    rows = plan(TOWN)
    assert [row.stage for row in rows if row.state == "cached"] == ["town", "corpus"]
    assert "923 k" in words(plan_table(TOWN, rows))


def test_a_plan_without_servers_says_so() -> None:
    rows = plan(TOWN, ask_mlflow=False)
    assert {row.state for row in rows} == {"?"}
    assert "cached stages are unknown" in words(plan_table(TOWN, rows))


def test_a_plan_has_the_hours_of_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 rankings of 240 s and 6 pairs of 120 s, each by two: 6240 s are 1.73 hours."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    people = ["labeling.annotators=people", "labeling.poll_seconds=1"]
    rows = plan(load_recipe(str(TINY), people), ask_mlflow=False)
    (work,) = [row.work for row in rows if row.work]
    assert (
        work.hours == pytest.approx(6240 / 3600) and "10 ranking tasks · 2 annotators · 240 s (assumed)" in work.basis
    )
    assert "1.7 h" in words(plan_table(load_recipe(str(TINY), people), rows, width=80))
    budget = plan(load_recipe(str(TINY), [*people, "labeling.choose.hours=0.5"]), ask_mlflow=False)
    assert [row.work.hours for row in budget if row.work] == [0.5]
    assert not [row for row in plan(load_recipe(str(TINY)), ask_mlflow=False) if row.work]


def test_a_wrong_stage_is_named_before_any_server_is_asked() -> None:
    shown = CliRunner().invoke(app, ["run", str(TINY), "--stage", "rewards"])
    assert isinstance(shown.exception, ConfigError) and "no stage 'rewards'; it has town, corpus" in str(
        shown.exception
    )


def test_a_change_of_an_option_changes_its_stage_and_what_follows() -> None:
    changed = TOWN.model_copy(update={"sft": SFTConfig(epochs=9)})
    before, after = keys(steps(TOWN)), keys(steps(changed))
    different = {stage for stage in before if before[stage] != after[stage]}
    assert different == {"sft", "responses", "labeling", "comparisons", "reward", "ppo", "evaluate"}


def test_other_seeds_are_other_stages_throughout() -> None:
    before, after = keys(steps(TOWN)), keys(steps(TOWN.model_copy(update={"seed": 1})))
    assert all(before[stage] != after[stage] for stage in before)


def test_a_release_is_found_by_name_or_as_the_newest(home: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no release yet.*rlhf run town"):
        load_release()
    for name in ("t-1", "t-2"):
        with runs.pipeline_run("t", recipe=TokenizerConfig()) as run_id:
            log_release(run_id, {**MANIFEST, "release": name})
        time.sleep(0.01)
    assert load_release()["release"] == "t-2"
    assert load_release("t-1") == MANIFEST
    with pytest.raises(ArtifactError, match=r"no release 't-9'.*t-2, t-1"):
        load_release("t-9")


def test_the_newest_release_is_the_one_that_ended_last(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), runs.pipeline_run("t", recipe=TokenizerConfig(), alone=True):
        raise KeyboardInterrupt
    with runs.pipeline_run("t", recipe=TokenizerConfig()) as run_id:
        log_release(run_id, {**MANIFEST, "release": "begun-second"})
    time.sleep(0.01)
    with runs.pipeline_run("t", recipe=TokenizerConfig(), alone=True) as run_id:
        log_release(run_id, {**MANIFEST, "release": "begun-first"})
    assert load_release()["release"] == "begun-first"


def test_a_report_shows_every_figure_and_a_dash_for_what_was_not_measured() -> None:
    text = words(report_view(MANIFEST))
    for figure in ("t-1", "0.910", "0.750 of 120", "0.660 to 0.820", "3.250", "77 comparisons", "0.710", "30 s of"):
        assert figure in text
    assert "–" in text
    assert words(report_view({"release": "x"}))


def comparisons_stage(out: Path, journal: Journal) -> Mapping[str, float]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),))
    good, bad = Response(id="r_a", text="yes"), Response(id="r_b", text="no")
    said = {"prompt": prompt, "chosen": good, "rejected": bad}
    rows = [Comparison(id=f"c{n}", annotation_id=str(n), annotator_id=str(n % 2 + 1), **said) for n in (10, 9, 11, 9)]
    write_records(out / "comparisons.jsonl", rows)
    return {"comparisons": 4.0}


def chain_of_stages() -> dict[str, Artifact]:
    corpus = run_stage("corpus", Counted(), config=TokenizerConfig())
    base = run_stage("pretrain", text_model, config=SFTConfig(), inputs={"corpus": corpus}, model="base")
    comparisons = run_stage("comparisons", comparisons_stage, config=ComparisonsConfig(), inputs={"sft": base})
    given = {"sft": base, "comparisons": comparisons}
    reward = run_stage("reward", reward_model, config=RewardConfig(), inputs=given, model="reward")
    given = {"sft": base, "reward": reward, "corpus": corpus}
    policy = run_stage("ppo", text_model, config=SFTConfig(), inputs=given, model="policy")
    return {"corpus": corpus, "base": base, "comparisons": comparisons, "policy": policy}


def test_lineage_walks_back_to_annotations_and_corpus(home: Path) -> None:
    made = chain_of_stages()
    MlflowClient().set_registered_model_alias("policy", "candidate", "1")
    found = lineage("policy@candidate")
    assert (found["model"], found["aliases"]) == ("models:/policy/1", ["candidate"])
    assert found["inputs"]["corpus"]["key"] == made["corpus"].key
    judged = found["inputs"]["reward"]["inputs"]["comparisons"]
    assert judged["annotation_ids"] == ["9", "10", "11"]
    assert judged["annotator_ids"] == ["1", "2"]
    assert judged["comparisons"] == 4
    assert found["inputs"]["sft"] == {"stage": "pretrain", "see": made["base"].key}  # written out above
    text = words(lineage_tree(found))
    assert "4 comparisons from 3 annotations by 2 annotators: 9, 10, 11" in text
    assert "@candidate" in text
    made["comparisons"].file("comparisons.jsonl").unlink()
    assert lineage("policy/1")["inputs"]["reward"]["inputs"]["comparisons"] == judged  # from MLflow this time


@pytest.mark.parametrize(
    ("model", "text"),
    [("policy@champion", "nothing is registered yet"), ("nobody", "nothing is registered yet")],
)
def test_an_unknown_model_says_what_there_is(home: Path, model: str, text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        lineage(model)
    run_stage("sft", text_model, config=SFTConfig(), model="sft")
    with pytest.raises(ArtifactError, match="registered are sft"):
        lineage(model)
    with pytest.raises(ArtifactError, match="sft has versions 1 and aliases"):
        lineage("sft/7")


def test_a_malformed_model_shows_the_forms() -> None:
    with pytest.raises(ConfigError, match="NAME@ALIAS"):
        lineage("a b")


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("up", "down", "status", "recipes", "run", "report", "lineage"):
        assert f" {command} " in told.stdout
    loaded = [sys.executable, "-c", "import sys, flows.cli.main; print(set(sys.argv[1:]) & set(sys.modules))", *HEAVY]
    assert subprocess.run(loaded, capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run", "nothing"], 2, "there is no recipe 'nothing'"),
        (["report"], 1, "start the servers with `rlhf up`"),
        (["lineage", "policy"], 1, "start the servers with `rlhf up`"),
    ],
)
def test_errors_are_words_and_an_exit_code(
    arguments: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert text in capsys.readouterr().err


def test_recipes_are_listed_and_planned_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "mine.yaml"
    path.write_text("town: {}\nlabeling: {}\n")
    told = CliRunner().invoke(app, ["run", str(path), "--set", "seed=5", "--plan"], env={"COLUMNS": "160"})
    assert told.exit_code == 0, told.output
    assert "mine, seed 5" in told.output
    assert CliRunner().invoke(app, ["recipes"]).exit_code == 0


class Refusing(BaseHTTPRequestHandler):
    """A server that is healthy and accepts nobody's account; `page` is the body of its refusals."""

    status, page = 401, b"You are not authenticated."

    def do_GET(self) -> None:
        healthy = self.path.startswith("/health") or self.path.startswith("/version")
        self.send_response(200 if healthy else self.status)
        self.end_headers()
        self.wfile.write(b"OK" if healthy else self.page)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "page"), [(401, b"You are not authenticated."), (403, b'{"error_code": "PERMISSION_DENIED"}')]
)
def test_an_mlflow_that_refuses_the_account_is_a_sentence(tmp_path: Path, status: int, page: bytes) -> None:
    handler = type("Handler", (Refusing,), {"status": status, "page": page})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"http://bob:hunter22@{host}", "RLHF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "flows.cli.main", "report"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        server.shutdown()
    assert done.returncode == 1 and "Traceback" not in done.stderr and "hunter22" not in done.stderr
    assert f"rlhf: MLflow (http://***@{host}) refuses the request with status {status}: set" in done.stderr, done.stderr
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr


def test_servers_that_refuse_are_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    request = httpx.Request("GET", "http://127.0.0.1:4200/api/flow_runs")
    for status, words in ((401, "Prefect (http://127.0.0.1:4200/api) refuses"), (403, "Prefect"), (404, ""), (500, "")):
        error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))
        assert refusing_server(error).startswith(words) and bool(refusing_server(error)) == bool(words)
    assert refusing_server(MlflowException("gone", RESOURCE_DOES_NOT_EXIST)) == refusing_server(ValueError("x")) == ""
    with pytest.raises(RunStopped, match=r"PREFECT_API_AUTH_STRING .*Every finished stage is kept"), friendly_errors():
        raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(401, request=request))


def test_a_plan_refuses_a_local_checkpoint_that_the_run_would_refuse(tmp_path: Path) -> None:
    RwkvConfig().save_pretrained(tmp_path / "rwkv")
    (tmp_path / "text.txt").write_text("One.\n\nTwo.")
    source = {"sources": [{"path": str(tmp_path / "text.txt")}]}
    sections = dict.fromkeys(("corpus", "demonstrations", "prompts", "comparisons"), source)
    recipe = {"name": "r", "town": None, "pretrain": {"checkpoint": str(tmp_path / "rwkv"), "epochs": 0}, **sections}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "r.yaml"), "--plan"])
    assert isinstance(result.exception, CheckpointError)
    assert "RwkvForCausalLM takes none of transformers' caches" in str(result.exception)
