"""End states of failing stages: FAILED or KILLED in MLflow with the reason, resumable, with a clear message."""

import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy
import pytest
import torch
from mlflow import MlflowClient

from alignment.config.stages import PretrainConfig, SFTConfig
from alignment.errors import TrainingError
from alignment.journal import Journal
from alignment.training.loop import write_state
from flows.failures import StageStopped, friendly_errors
from flows.tracking import links, runs
from tests.flows.faulty import until
from tests.flows.tiny import run_stage

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the threads of whatever ran before


def only_run() -> mlflow.entities.Run:
    (run,) = runs.search({runs.TAG_STAGE: "ppo"})
    return run


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, no file of this process may grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Growing:
    """A stage with a checkpoint after each of three steps; from the second on they are `size` numbers large."""

    def __init__(self, size: int) -> None:
        self.size, self.began_at = size, list[int]()

    def __call__(self, out: Path, journal: Journal) -> Mapping[str, float]:
        (out / "checkpoint").mkdir(exist_ok=True)
        done = len(list((out / "checkpoint").glob("step-*.pt")))
        self.began_at.append(done + 1)
        for step in range(done + 1, 4):
            journal.log({"loss": 1.0 / step}, step)
            size = self.size if step > 1 else 1
            write_state({"weights": torch.zeros(size)}, out / "checkpoint" / f"step-{step:05d}.pt")
        return {"loss": 0.1}


def test_a_full_disk_keeps_the_last_checkpoint_and_the_same_command_goes_on(home: Path) -> None:
    work = Growing(4_000_000)
    with largest_file(8_000_000), pytest.raises(StageStopped) as ended:
        run_stage("ppo", work, config=SFTConfig())
    told = str(ended.value)
    assert "no disk space left" in told and "last checkpoint: step-00001.pt" in told and "free some space" in told
    run = only_run()
    assert run.info.status == "FAILED" and run.data.tags[runs.TAG_REASON] == f"StageStopped: {told}"
    assert run.data.tags[links.TAG_NOTE] == run.data.tags[runs.TAG_REASON]  # what MLflow's page shows as description
    assert not list((home / "artifacts").rglob("*.pt.partial"))  # nothing that goes on filling the disk
    made = run_stage("ppo", work, config=SFTConfig())
    assert work.began_at == [1, 2]
    run = only_run()
    assert (run.info.run_id, run.info.status) == (made.run_id, "FINISHED") and runs.TAG_REASON not in run.data.tags


def allocate(_: Path, journal: Journal) -> Mapping[str, float]:
    """The real error of torch's allocator."""
    torch.empty(10**15)
    return {}


def allocate_array(_: Path, journal: Journal) -> Mapping[str, float]:
    """The real error of numpy's."""
    numpy.empty(10**15)
    return {}


@pytest.mark.parametrize("work", [allocate, allocate_array])
def test_used_up_memory_names_the_options_that_need_less(home: Path, work: object) -> None:
    with pytest.raises(StageStopped, match=r"ran out of memory.*lower ppo\.micro_batch_tokens.*is kept in"):
        run_stage("ppo", work, config=SFTConfig())  # type: ignore[arg-type]
    assert only_run().info.status == "FAILED"


def step_then(home: str, uri: str, end: str) -> None:
    """Runs in a process of its own: a stage that says where it is, and then waits or is killed for want of memory."""

    def work(out: Path, journal: Journal) -> Mapping[str, float]:
        journal.log({"loss": 1.0}, 1)
        Path(home, "begun").touch()
        if end == "out of memory":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does
        until(lambda: Path(home, "never").exists())
        return {}

    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background has it ignored
    os.environ["RLHF_HOME"] = home
    mlflow.set_tracking_uri(uri)
    with friendly_errors():
        run_stage("ppo", work, config=SFTConfig())


def finishing(out: Path, journal: Journal) -> Mapping[str, float]:
    """The same stage, which comes to its end."""
    journal.log({"loss": 1.0}, 1)
    return {}


@pytest.mark.parametrize("end", ["out of memory", "Ctrl-C"])
def test_a_stopped_stage_is_killed_in_mlflow_and_goes_on(
    home: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    process = SPAWN.Process(target=step_then, args=(str(home), mlflow.get_tracking_uri(), end))
    process.start()
    until((home / "begun").exists)
    if end == "Ctrl-C":
        os.kill(process.pid or 0, signal.SIGINT)
    process.join(300)
    run = only_run()
    if end == "Ctrl-C":
        assert (process.exitcode, run.info.status) == (1, "KILLED")
        assert run.data.tags[runs.TAG_REASON] == "KeyboardInterrupt: stopped; the same command resumes"
    else:
        assert (process.exitcode, run.info.status) == (-signal.SIGKILL, "RUNNING")
    with caplog.at_level(logging.WARNING, "flows.tracking.runs"):
        made = run_stage("ppo", finishing, config=SFTConfig())
    assert ("has no end state (killed, out of memory" in caplog.text) == (end == "out of memory")
    assert (made.run_id, only_run().info.status) == (run.info.run_id, "FINISHED")
    assert [metric.step for metric in MlflowClient().get_metric_history(made.run_id, "loss")] == [1]


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_checkpoint_from_before(home: Path) -> None:
    """Weights become so large at the third step that the next loss is not a number."""
    from transformers import AutoModelForCausalLM

    from alignment.training.pretrain import PackedText, train_packed
    from tests.flows.tiny import write_model

    write_model(home / "start")
    text = PackedText(torch.arange(64 * 16).view(64, 16) % 200, 1.0)
    config = PretrainConfig.model_validate(
        {"epochs": 1, "batch_sequences": 8, "checkpoint_every_steps": 2, "log_every_steps": 1}
    )

    def work(out: Path, journal: Journal) -> Mapping[str, float]:
        model = AutoModelForCausalLM.from_pretrained(home / "start")
        embedding, steps = model.get_input_embeddings(), []

        def spoil(*_: object) -> None:
            steps.append(1)
            if len(steps) == 2 * 4 + 1:  # two halves of a batch a step; a checkpoint's held-out loss is not trained
                embedding.weight.data.fill_(float("inf"))

        model.register_forward_pre_hook(lambda module, _: spoil() if torch.is_grad_enabled() else None)
        train_packed(model, text, text, config, out, journal, 0)
        return {}

    with pytest.raises(TrainingError, match=r"the loss is nan .*at step 5.*Last good: .*state\.pt") as ended:
        run_stage("ppo", work, config=config)
    run = only_run()
    assert run.info.status == "FAILED" and str(ended.value) in run.data.tags[runs.TAG_REASON]
    (kept,) = (home / "artifacts").glob("*.partial/checkpoint/state.pt")
    state = torch.load(kept, weights_only=True)
    assert state["step"] == 4 and all(torch.isfinite(value).all() for value in state["model"].values())
