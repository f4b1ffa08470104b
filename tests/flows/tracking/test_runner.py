"""The stage runner on a real MLflow store: cached, resumed, restored, registered, always atomic."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import mlflow
import pandas
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from alignment.artifacts import Artifact, directory_digest
from alignment.config.stages import SFTConfig, TokenizerConfig
from alignment.errors import ArtifactError, DataError
from alignment.journal import Journal
from alignment.records import Rejected, write_records
from flows.locks import try_lock
from flows.tracking import metrics, registry, runs
from flows.tracking.layout import SERVED
from flows.tracking.runner import as_state, find
from tests.flows.tiny import Counted, reward_model, run_stage, text_model, write_model

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the threads of whatever ran before


def history(run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in MlflowClient().get_metric_history(run_id, name))


def test_a_finished_stage_is_found_and_not_run_again(home: Path) -> None:
    work = Counted()
    first = run_stage("corpus", work, config=TokenizerConfig(), seed=3)
    again = run_stage("corpus", work, config=TokenizerConfig(), seed=3)
    assert work.calls == 1
    assert (first.cached, again.cached) == (False, True)
    assert again.model_copy(update={"cached": False, "seconds": first.seconds}) == first
    assert again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert first.path == home / "artifacts" / f"corpus-{first.key[:16]}"
    assert sorted(path.name for path in first.path.iterdir()) == [
        "metrics.jsonl",
        "provenance.json",
        "result.json",
        "text.txt",
    ]
    assert first.result() == {"loss": 0.25}


def test_what_is_different_is_another_stage(home: Path) -> None:
    work = Counted()
    source = home / "in.txt"
    source.write_text("one")
    made = [
        run_stage("corpus", work, config=TokenizerConfig()),
        run_stage("corpus", work, config=TokenizerConfig(vocab_size=300)),
        run_stage("corpus", work, config=TokenizerConfig(), seed=1),
        run_stage("corpus", work, config=TokenizerConfig(), version=2),
        run_stage("corpus", work, config=TokenizerConfig(), files=[source]),
    ]
    source.write_text("two")
    made.append(run_stage("corpus", work, config=TokenizerConfig(), files=[source]))
    made.append(run_stage("corpus", work, config=TokenizerConfig(), inputs={"town": made[0]}))
    assert len({artifact.key for artifact in made}) == len(made) == work.calls


def test_a_run_tells_everything_that_went_in(home: Path) -> None:
    corpus = run_stage("corpus", Counted(), config=TokenizerConfig())
    sft = run_stage("sft", Counted(), config=SFTConfig(epochs=2), inputs={"corpus": corpus}, seed=7)
    run = mlflow.get_run(sft.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2.0"
    assert run.data.params["run_seed"] == "7"
    assert run.data.tags["rlhf.digest"] == directory_digest(sft.path)
    assert "torch" in json.loads(run.data.tags["rlhf.versions"])
    tags = {name: run.data.tags.get(f"rlhf.{name}") for name in ("device", "precision", "processes", "gpu")}
    assert tags == {"device": "cpu", "precision": "float32", "processes": "1", "gpu": None}
    used = json.loads(sft.file("provenance.json").read_text())["compute"]
    assert (used["device"], used["precision"]) == ("cpu", "float32")
    assert not (sft.path / "environment.json").exists()
    assert runs.read_inputs(run.data.tags)["corpus"]["run_id"] == corpus.run_id
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("corpus", corpus.digest[:32])
    assert run.data.metrics["final/loss"] == 0.25
    assert {item.path for item in MlflowClient().list_artifacts(sft.run_id, "output")} >= {"output/text.txt"}
    assert "checkpoint" not in str(list(sft.path.rglob("*")))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_stage_goes_on_in_the_same_run_from_its_checkpoint(home: Path, error: type[BaseException]) -> None:
    work = Counted(failures=1, error=error)
    with pytest.raises(error):
        run_stage("sft", work, config=SFTConfig())
    (begun,) = runs.search({runs.TAG_STAGE: "sft"})
    assert begun.info.status != "FINISHED"
    assert find("sft", begun.data.tags[runs.TAG_KEY], home) is None
    assert [path.suffix for path in (home / "artifacts").iterdir()] == [".partial"]
    artifact = run_stage("sft", work, config=SFTConfig())
    assert artifact.run_id == begun.info.run_id
    assert history(artifact.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def killed_stage(home: str, uri: str) -> None:
    """Runs in a process of its own, and is killed in the middle of its work."""

    def work(out: Path, journal: object) -> dict[str, float]:
        Counted()(out, journal)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    os.environ["RLHF_HOME"] = home
    mlflow.set_tracking_uri(uri)
    run_stage("sft", work, config=SFTConfig())


def test_a_killed_stage_leaves_nothing_that_counts_as_done(home: Path) -> None:
    process = SPAWN.Process(target=killed_stage, args=(str(home), mlflow.get_tracking_uri()))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    (begun,) = runs.search({runs.TAG_STAGE: "sft"})
    assert begun.info.status == "RUNNING"
    work = Counted()
    artifact = run_stage("sft", work, config=SFTConfig())
    assert (artifact.run_id, artifact.cached, work.calls) == (begun.info.run_id, False, 1)


def test_finished_work_is_not_done_again_when_only_the_upload_failed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    work = Counted()
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifacts", away)
        with pytest.raises(MlflowException):
            run_stage("sft", work, config=SFTConfig())
    artifact = run_stage("sft", work, config=SFTConfig())
    assert work.calls == 1
    assert artifact.path.is_dir()


def test_what_was_uploaded_and_not_registered_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mlflow, "register_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", text_model, config=SFTConfig(), model="sft")
    made = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    assert made.model == "models:/sft/1"
    (weights,) = Path("mlruns").rglob("model.safetensors")  # once, where the version points
    assert weights.parts[-4:-1] == (SERVED, "artifacts", "model")
    assert MlflowClient().get_model_version("sft", "1").source.endswith(f"{made.run_id}/artifacts/{SERVED}")


def test_a_second_version_that_a_repeated_request_made_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = mlflow.register_model

    def lost(*arguments: object, **options: object) -> object:
        real(*arguments, **options)  # type: ignore[arg-type]
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow, "register_model", lost)
    made = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    found = MlflowClient().search_model_versions("name = 'sft'")
    assert [f"models:/sft/{one.version}" for one in found] == [made.model]


def test_what_killed_runs_left_beside_an_output_is_removed(home: Path) -> None:
    made = run_stage("sft", Counted(), config=SFTConfig())
    for left in (".partial", ".download", ".replaced-0123abcd"):
        shutil.copytree(made.path, made.path.with_name(made.path.name + left))
    assert run_stage("sft", Counted(), config=SFTConfig()).cached
    assert [path.name for path in (home / "artifacts").iterdir()] == [made.path.name]


def test_an_output_published_by_a_run_that_did_not_finish_is_taken_back(home: Path) -> None:
    work = Counted()
    artifact = run_stage("sft", work, config=SFTConfig())
    MlflowClient().update_run(artifact.run_id, status="RUNNING")  # as if killed between the rename and the end
    again = run_stage("sft", work, config=SFTConfig())
    assert (work.calls, again.cached, again.digest) == (1, False, artifact.digest)


def test_a_lost_output_comes_back_from_mlflow(home: Path) -> None:
    work = Counted()
    artifact = run_stage("sft", work, config=SFTConfig())
    shutil.rmtree(artifact.path)
    again = run_stage("sft", work, config=SFTConfig())
    assert (work.calls, again.cached) == (1, True)
    assert directory_digest(again.path) == artifact.digest


def test_a_changed_output_is_replaced_by_what_was_published(home: Path) -> None:
    work = Counted()
    artifact = run_stage("sft", work, config=SFTConfig())
    (artifact.path / "text.txt").write_text("edited")
    assert run_stage("sft", work, config=SFTConfig()).file("text.txt").read_text() == "an output\n"
    assert work.calls == 1


def test_an_output_that_is_lost_everywhere_is_made_again(home: Path) -> None:
    work = Counted()
    artifact = run_stage("sft", work, config=SFTConfig())
    shutil.rmtree(artifact.path)
    shutil.rmtree(Path(mlflow.artifacts.download_artifacts(run_id=artifact.run_id)) / "output")
    again = run_stage("sft", work, config=SFTConfig())
    assert (work.calls, again.cached, again.run_id != artifact.run_id) == (2, False, True)


def test_a_server_that_is_away_does_not_hurt_the_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, real = [], MlflowClient.log_batch

    def flaky(self: MlflowClient, run_id: str, *args: object, **options: object) -> object:
        sent.append(1)
        if options.get("metrics") and len(sent) < 3:
            raise MlflowException("connection refused")
        return real(self, run_id, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    monkeypatch.setattr(metrics, "INTERVAL_SECONDS", 0.01)
    artifact = run_stage("sft", lambda out, journal: (Counted()(out, journal), time.sleep(0.1))[0], config=SFTConfig())
    assert history(artifact.run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]


def test_two_who_want_the_same_do_it_once(home: Path) -> None:
    uri = mlflow.get_tracking_uri()
    racers = [SPAWN.Process(target=racing_stage, args=(str(home), uri)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(300)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert (home / "calls").read_text() == "x"
    assert len(runs.search({runs.TAG_STAGE: "sft"})) == 1


def racing_stage(home: str, uri: str) -> None:
    def work(out: Path, journal: object) -> dict[str, float]:
        with (Path(home) / "calls").open("a") as file:
            file.write("x")
        time.sleep(0.5)
        return {}

    os.environ["RLHF_HOME"] = home
    mlflow.set_tracking_uri(uri)
    run_stage("sft", work, config=SFTConfig())


def test_models_are_registered_once_and_can_be_served(home: Path) -> None:
    corpus = run_stage("corpus", Counted(), config=TokenizerConfig())
    sft = run_stage("sft", text_model, config=SFTConfig(), inputs={"corpus": corpus}, model="sft")
    reward = run_stage("reward", reward_model, config=SFTConfig(), inputs={"sft": sft}, model="reward")
    assert (sft.model, reward.model) == ("models:/sft/1", "models:/reward/1")
    assert run_stage("sft", text_model, config=SFTConfig(), inputs={"corpus": corpus}, model="sft").model == sft.model
    version = MlflowClient().get_model_version("reward", "1")
    assert (version.run_id, version.tags["rlhf.key"]) == (reward.run_id, reward.key)
    assert runs.read_inputs(MlflowClient().get_run(reward.run_id).data.tags)["sft"]["model"] == "models:/sft/1"

    rows = pandas.DataFrame({"prompt": ["hello", "who"], "response": ["yes", "no"]})
    scorer = mlflow.pyfunc.load_model("models:/reward/1")
    scores = scorer.predict(rows)
    assert len(scores) == 2
    assert scores[0] != scores[1]
    speaker = mlflow.pyfunc.load_model("models:/sft/1")
    told = {"max_new_tokens": 4, "temperature": 0.0}
    answers = speaker.predict(rows[["prompt"]], params=told)
    assert answers == speaker.predict(rows[["prompt"]], params=told)


def test_a_model_comes_back_from_the_registry_and_a_deleted_version_is_made_again(home: Path) -> None:
    sft = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    shutil.rmtree(sft.path)
    again = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    assert again.cached
    assert (again.path / "model" / "model.safetensors").is_file()
    MlflowClient().delete_model_version("sft", "1")
    assert run_stage("sft", text_model, config=SFTConfig(), model="sft").model == "models:/sft/2"


def test_weights_that_can_run_code_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    registry.check_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin"):
        registry.check_weights(tmp_path)
    with pytest.raises(ArtifactError, match=r"no \*\.safetensors"):
        registry.check_weights(tmp_path / "nowhere")


def test_stages_nest_under_the_pipelines_run_which_a_resumed_flow_goes_on_with(home: Path) -> None:
    with runs.pipeline_run("town", recipe=TokenizerConfig(), flow_run_id="flow-1") as first:
        made = run_stage("corpus", Counted(), config=TokenizerConfig())
    with runs.pipeline_run("town", recipe=TokenizerConfig(), flow_run_id="flow-1") as second:
        run_stage("corpus", Counted(), config=TokenizerConfig())
    assert first == second
    assert mlflow.get_run(made.run_id).data.tags["mlflow.parentRunId"] == first
    tags = mlflow.get_run(first).data.tags
    assert (tags["rlhf.run.corpus"], tags["rlhf.cached.corpus"]) == (made.run_id, "true")


def test_a_pipeline_of_a_terminal_goes_on_in_its_run_until_that_is_finished(home: Path) -> None:
    def begin(recipe: TokenizerConfig | None = None) -> AbstractContextManager[str]:
        return runs.pipeline_run("town", recipe=recipe or TokenizerConfig(), flow_run_id=str(uuid4()), alone=True)

    with pytest.raises(KeyboardInterrupt), begin() as first:
        raise KeyboardInterrupt
    with begin(TokenizerConfig(vocab_size=300)) as other:
        pass
    with try_lock(home, mlflow.get_run(first).data.tags[runs.TAG_PIPELINE]):  # somebody works on it
        with begin() as beside:
            pass
        MlflowClient().delete_run(beside)
    with begin() as second:
        assert mlflow.get_run(second).info.status == "RUNNING"
    with begin() as after:
        pass
    assert first == second and len({first, other, beside, after}) == 4


def test_a_missing_file_is_an_error_before_anything_runs(home: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        run_stage("corpus", Counted(), config=TokenizerConfig(), files=[home / "gone.jsonl"])
    assert runs.search({runs.TAG_STAGE: "corpus"}) == []


def test_prefect_shows_a_found_stage_as_cached(tmp_path: Path) -> None:
    made = Artifact(stage="sft", key="k", run_id="r", path=tmp_path, digest="d")
    assert as_state(made) is made
    state = as_state(made.model_copy(update={"cached": True}))
    assert not isinstance(state, Artifact)
    assert (state.name, state.is_completed()) == ("Cached", True)


def test_parameters_are_one_level_of_dotted_names() -> None:
    given = {"tokenizer": TokenizerConfig(vocab_size=300), "context_length": 64, "empty": {}, "list": [1, 2]}
    expected = {"tokenizer.vocab_size": 300, "context_length": 64, "empty": {}, "list": [1, 2]}
    assert runs.flatten(given) == expected


def puts_aside(out: Path, journal: Journal) -> dict[str, float]:
    long = [Rejected(file="a.jsonl", line=n, reason=f"{400 + n} tokens, more than 384") for n in (7, 8)]
    write_records(out / "rejected.jsonl", [Rejected(file="a.jsonl", line=3, reason="an empty \x1b[2J turn"), *long])
    return {}


def test_rows_that_are_put_aside_are_told_in_one_line(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifact = run_stage("sft", puts_aside, config=TokenizerConfig())
    (line,) = [message for message in caplog.messages if "put aside" in message]
    assert line == (
        "stage 'sft' put aside 3 rows, 2 of them for such a reason: 407 tokens, more than 384 (a.jsonl line 7). All "
        f"are in {artifact.path / 'rejected.jsonl'}"
    )
    caplog.clear()
    run_stage("sft", puts_aside, config=TokenizerConfig())
    assert not [message for message in caplog.messages if "put aside" in message]  # from the cache
    run_stage("corpus", Counted(), config=TokenizerConfig())
    assert "put aside" not in caplog.text
