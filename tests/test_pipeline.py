"""The pipeline end to end on a town of fourteen people, with a real Label Studio, Prefect and MLflow store."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from alignment.config.stages import CorpusConfig
from alignment.errors import ConfigError, DataError
from alignment.journal import Journal
from alignment.records import Comparison, read_records
from alignment.stage import Step
from alignment.stages import CORPUS
from flows.annotation.accounts import remember
from flows.cli.main import main
from flows.pipeline.dag import keys, needed, steps
from flows.pipeline.flow import rlhf, run_stage_alone
from flows.pipeline.plan import finished
from flows.pipeline.sweep import rlhf_sweep
from flows.recipe.schema import Recipe, load_recipe
from flows.releases.lineage import lineage
from flows.releases.report import load_release
from flows.releases.trace import trace
from flows.tracking import runs
from flows.tracking.layout import OUTPUT
from flows.tracking.runner import find, run_step
from labeling.errors import ServerUnavailable
from labeling.server.client import LabelStudio
from labeling.server.users import ensure_account
from labeling.simulation.crew import pairwise_result, ranking_result, responses_of
from tests.conftest import TINY
from tests.labeling.helpers import TOKEN, free_port

pytestmark = pytest.mark.server
STAGES = [
    "town",
    "corpus",
    "tokenizer",
    "pretrain",
    "demonstrations",
    "prompts",
    "sft",
    "responses",
    "labeling",
    "comparisons",
    "reward",
    "ppo",
    "evaluate",
]
TRAINED = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}
PART = """
import sys
from flows.pipeline.dag import steps
from flows.recipe.schema import load_recipe
from flows.tracking.runner import run_step
chain = steps(load_recipe(sys.argv[1], sys.argv[2:]))
made = {}
for name in ("town", "corpus", "tokenizer", "pretrain"):
    step = chain[name]
    made[name] = run_step(step, {given: made[source] for given, source in step.inputs.items()})
print(made["pretrain"].run_id, made["pretrain"].cached, made["corpus"].cached)
"""


@pytest.fixture(scope="module", autouse=True)
def label_studio(server_url: str) -> Any:
    """The pipeline finds Label Studio by these names, as it does under `rlhf run`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABEL_STUDIO_URL", server_url)
        patch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        yield


@pytest.fixture(scope="module")
def release(workplace: Path) -> dict[str, Any]:
    """The manifest of a first run; every test of this file is about it or comes after it."""
    return rlhf(load_recipe(str(TINY)))


def annotations_of(owner: LabelStudio, title: str) -> dict[str, dict[str, Any]]:
    """Every annotation in the projects of a title, by id."""
    ours = [project["id"] for project in owner.projects() if project["title"].startswith(title)]
    exports = [owner.get(f"/api/projects/{number}/export", exportType="JSON") for number in ours]
    return {str(one["id"]): one for export in exports for task in export for one in task["annotations"]}


def test_every_stage_runs_once_and_the_manifest_has_every_headline(release: dict[str, Any]) -> None:
    assert list(release["seconds"]) == list(release["cached"]) == STAGES
    assert not any(release["cached"].values()) and all(seconds > 0 for seconds in release["seconds"].values())
    assert release["seed"] == 0 and release["comparisons"] > 30
    for model in ("base", "sft", "policy"):
        assert release["gold"][model].keys() == {"helpful", "truthful", "harmless", "score"}
        assert release["tax"][model] > 0
    assert release["win_rate_vs_sft"].keys() >= {"rate", "low", "high", "decided"}
    wanted = {
        "accuracy_heldout_prompts",
        "accuracy_heldout_annotators",
        "annotator_agreement",
        "ece",
        "length_correlation",
        "bag_of_words_accuracy",
    }
    assert release["reward_model"].keys() >= wanted
    assert isinstance(release["kl_to_sft"], float)
    assert load_release() == load_release(release["release"]) == json.loads(json.dumps(release))


def test_mlflow_has_a_nested_run_a_stage_and_four_models(release: dict[str, Any]) -> None:
    client = MlflowClient()
    nested = runs.search({"mlflow.parentRunId": release["mlflow_run_id"]})
    by_stage = {run.data.tags[runs.TAG_STAGE]: run for run in nested}
    assert sorted(by_stage) == sorted(STAGES)
    for stage, run in by_stage.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["run_seed"] == "0"
        assert "mlflow.source.git.commit" in run.data.tags and "torch" in run.data.tags["rlhf.versions"]
        assert len(run.inputs.dataset_inputs) == len(steps(load_recipe(str(TINY)))[stage].inputs)
    for stage, name in TRAINED.items():
        assert len(client.get_metric_history(by_stage[stage].info.run_id, "loss" if stage != "ppo" else "kl")) >= 3
        figures = [file.path for file in client.list_artifacts(by_stage[stage].info.run_id, f"{OUTPUT}/figures")]
        assert figures and all(path.endswith(".png") for path in figures)
        registered = f"tiny-{'reward-model' if name == 'reward' else name}"
        assert release["models"][name] == f"models:/{registered}/1"
        assert client.get_model_version(registered, "1").run_id == by_stage[stage].info.run_id
    shown = {file.path for file in client.list_artifacts(release["mlflow_run_id"], "report")}
    assert {"report/gold_curve", "report/release.json", "report/samples.md"} <= shown
    assert not list(Path("mlruns").rglob("*.bin")) and not list(Path("mlruns").rglob("*.pkl"))


def test_lineage_reaches_annotations_that_are_in_label_studio(release: dict[str, Any], owner: LabelStudio) -> None:
    found = lineage("tiny-policy@candidate")
    judged = found["inputs"]["reward"]["inputs"]["comparisons"]
    there = annotations_of(owner, "tiny")
    assert len(judged["annotation_ids"]) >= 20 and set(judged["annotation_ids"]) <= set(there)
    assert {str(there[one]["completed_by"]) for one in judged["annotation_ids"]} == set(judged["annotator_ids"])
    assert found["inputs"]["corpus"]["inputs"]["town"]["stage"] == "town"
    assert judged["inputs"]["labelled"]["inputs"]["responses"]["inputs"]["model"]["stage"] == "sft"


def test_a_comparison_leads_back_to_its_annotation_on_the_server(
    release: dict[str, Any], owner: LabelStudio, workplace: Path
) -> None:
    (place,) = workplace.glob("artifacts/comparisons-*")
    row = read_records(place / "comparisons.jsonl", Comparison)[0][0]
    found = trace(row.id)
    there = annotations_of(owner, "tiny")[row.annotation_id]
    assert str(there["completed_by"]) == found["annotator"]["annotator_id"] == row.annotator_id
    assert there["lead_time"] == found["judgement"]["lead_time"]
    assert found["task"]["task_url"] == f"{owner.url}/projects/{there['project']}/data?task={there['task']}"
    kept = Path(found["guidelines"]["file"]).read_text(encoding="utf-8")
    # Label Studio strips a label config, so the spaces at its ends do not count.
    assert hashlib.sha256(kept.strip().encode()).hexdigest().startswith(found["guidelines"]["version"])
    card = json.loads((place / "card.json").read_text())
    assert card["comparisons"] + card["ties"] == release["comparisons"] and found["task"]["kind"] in card["guidelines"]


def task_states(flow_run_id: str) -> list[str]:
    """The names of the states in which a flow run's tasks ended, as Prefect has them."""

    async def ask() -> list[str]:
        async with get_client() as client:
            found = await client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run_id]}))
            return [str(run.state_name) for run in found]

    return asyncio.run(ask())


def test_a_rerun_is_cached_throughout(release: dict[str, Any]) -> None:
    started = time.monotonic()
    again = rlhf(load_recipe(str(TINY)))
    assert time.monotonic() - started < 100
    assert all(again["cached"].values()) and list(again["cached"]) == STAGES
    for same in ("release", "models", "gold", "win_rate_vs_sft", "kl_to_sft", "tax", "comparisons", "reward_model"):
        assert again[same] == release[same]
    assert again["seconds"] == pytest.approx(release["seconds"], abs=1e-3)
    flow_run = MlflowClient().get_run(again["mlflow_run_id"]).data.tags[runs.TAG_FLOW_RUN]
    deadline = time.monotonic() + 60  # Prefect's client hands states over in the background
    while (states := task_states(flow_run)) != ["Cached"] * len(STAGES) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert states == ["Cached"] * len(STAGES)


def test_a_sweep_over_finished_work_reports_its_release_and_moves_no_alias(release: dict[str, Any]) -> None:
    client, (name, version) = MlflowClient(), release["models"]["policy"].removeprefix("models:/").split("/")
    client.delete_registered_model_alias(name, "candidate")
    (outcome,) = rlhf_sweep([str(TINY)], [], [0])
    assert (outcome.release, outcome.model) == (release["release"], release["models"]["policy"])
    assert outcome.figures["kl_to_sft"] == release["kl_to_sft"] and not outcome.problem
    assert "candidate" not in client.get_registered_model(name).aliases
    client.set_registered_model_alias(name, "candidate", version)


def test_a_stage_runs_by_itself_on_what_it_needs(release: dict[str, Any]) -> None:
    recipe = load_recipe(str(TINY), ["reward.epochs=1"])
    assert needed(steps(recipe), "sft") == ["town", "corpus", "tokenizer", "pretrain", "demonstrations", "sft"]
    before = len(runs.search({}, status="FINISHED"))
    assert run_stage_alone(recipe, "sft").cached and not run_stage_alone(recipe, "reward").cached
    assert len(runs.search({}, status="FINISHED")) == before + 1
    with pytest.raises(ConfigError, match="no stage 'rewrad'; it has town, corpus"):
        run_stage_alone(recipe, "rewrad")


def test_a_stage_that_is_killed_counts_as_nothing_and_goes_on_afterwards(workplace: Path) -> None:
    changed = ["seed=1", "pretrain.epochs=8", "pretrain.checkpoint_every_steps=5", "pretrain.log_every_steps=1"]
    command = [sys.executable, "-c", PART, str(TINY), *changed]
    recipe = load_recipe(str(TINY), changed)
    wanted = keys(steps(recipe))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        kept = workplace / "artifacts" / f"pretrain-{wanted['pretrain'][:16]}.partial" / "checkpoint" / "state.pt"
        deadline = time.monotonic() + 300
        while not kept.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert find("pretrain", wanted["pretrain"], workplace) is None
    assert finished(wanted) == {"town", "corpus", "tokenizer"}
    assert not (kept.parent.parent.with_suffix("")).exists()
    (begun,) = runs.search({runs.TAG_KEY: wanted["pretrain"]})
    assert begun.info.status != "FINISHED"
    fewer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert fewer[-3:] == [begun.info.run_id, "False", "True"]
    made = find("pretrain", wanted["pretrain"], workplace)
    assert made is not None
    logged = [line["step"] for line in Journal(made.path).read() if "loss" in line["values"]]
    assert logged == list(range(1, max(logged) + 1))
    assert begun.info.start_time == MlflowClient().get_run(made.run_id).info.start_time


def person(owner: LabelStudio, title: str, judged: list[int], gone: threading.Event) -> None:
    """Somebody who likes short answers judges the tasks of projects of a title through the API as they come."""
    account = ensure_account(owner, "paul@rlhf.local", "password-of-paul", "Paul")
    remember(owner, [account.id])  # who only signed up does not count
    done: set[int] = set()
    with LabelStudio(owner.url, account.token.get_secret_value()) as client:
        while not gone.wait(0.3):
            ours = [project["id"] for project in owner.projects() if project["title"].startswith(title)]
            for row in [row for number in ours for row in owner.tasks(number, "id", "data") if row["id"] not in done]:
                done.add(row["id"])
                shown = responses_of(row["data"])
                if "responses" in row["data"]:
                    result = ranking_result([one for one, _ in sorted(shown, key=lambda pair: len(pair[1]))])
                else:
                    result = pairwise_result(9.0 if len(shown[0][1]) < len(shown[1][1]) else -9.0, [(3, 3, 3)] * 2)
                judged.append(client.annotate(row["id"], result, 5.0))


def test_people_are_waited_for_until_enough_is_judged(release: dict[str, Any], owner: LabelStudio) -> None:
    changed = ["annotators=people", "title=paul", "poll_seconds=0.3", "minimum_share=0.5", "deadline_hours=0.2"]
    recipe = load_recipe(str(TINY), [f"labeling.{option}" for option in changed])
    judged: list[int] = []
    gone = threading.Event()
    paul = threading.Thread(target=person, args=(owner, "paul", judged, gone), daemon=True)
    paul.start()
    made = rlhf(recipe)
    gone.set()
    paul.join(30)
    before = STAGES[: STAGES.index("labeling")]
    assert [stage for stage, cached in made["cached"].items() if cached] == before
    assert made["release"] != release["release"] and made["models"]["policy"] == "models:/tiny-policy/2"
    said = lineage("tiny-policy@candidate")["inputs"]["reward"]["inputs"]["comparisons"]
    assert set(said["annotation_ids"]) <= set(map(str, judged)) and len(said["annotation_ids"]) >= 8
    assert len(said["annotator_ids"]) == 1
    rows, _ = read_records(artifact(recipe, "comparisons") / "comparisons.jsonl", Comparison)
    assert rows and all(len(row.chosen.text) <= len(row.rejected.text) for row in rows)


def artifact(recipe: Recipe, stage: str) -> Path:
    """Where a stage's output lies."""
    return Path(os.environ["RLHF_HOME"]) / "artifacts" / f"{stage}-{keys(steps(recipe))[stage][:16]}"


def test_a_label_studio_that_stopped_says_which_command_starts_it(
    release: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("RLHF_PATIENCE_SECONDS", "0")
    with pytest.raises(ServerUnavailable, match="`rlhf up` starts the local server"):
        rlhf(load_recipe(str(TINY), ["labeling.title=nowhere"]))
    assert mlflow.active_run() is None
    assert load_release()["release"] != "nowhere"


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        (["--set", "ppo.kl_coeff=1"], 2, ["ppo.kl_coeff: unknown key", "Did you mean ppo.kl_coef?"]),
        (["--set", "sft.epochs=many"], 2, ["sft.epochs: 'many' is not allowed", "a number above 0"]),
        (["--set", "sampling.prompts=3"], 2, ["sampling.prompts is 3, but labeling asks for 16 judged prompts"]),
        (
            ["--set", "corpus.sources=[{path: lost.txt, origin: in the attic}]"],
            1,
            ["'lost.txt' does not exist", "it is in the attic"],
        ),
        ([], 1, ["Label Studio (not running)", "start the servers with `rlhf up`"]),
    ],
)
def test_what_the_command_says(
    told: list[str],
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "LABEL_STUDIO_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["rlhf", "run", str(TINY), *told])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def corrupt(path: Path, bad: int) -> CorpusConfig:
    """A corpus of forty lines, the last `bad` of which are broken."""
    good = [json.dumps({"text": f"The {n}th house on the hill has a door of its own."}) for n in range(40 - bad)]
    path.write_text("\n".join([*good, *['{"text": "cut off'] * bad]) + "\n", encoding="utf-8")
    return CorpusConfig.model_validate({"sources": [{"path": str(path)}], "max_rejected_share": 0.05})


def test_a_corrupt_line_is_put_aside_and_too_many_are_refused(workplace: Path, tmp_path: Path) -> None:
    source = tmp_path / "corpus.jsonl"
    made = run_step(Step(CORPUS, corrupt(source, 2), files=(source,)), {})
    rows = [json.loads(line) for line in made.file("rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rows] == [(str(source), 39), (str(source), 40)]
    assert all("not a line of UTF-8 JSON" in row["reason"] for row in rows)
    assert made.result()["rejected"] == 2
    with pytest.raises(DataError, match=r"3 of 40 rows could not be read.*First: .*corpus.jsonl line 38: not a line"):
        run_step(Step(CORPUS, corrupt(source, 3), files=(source,)), {})
