"""Training stages in two processes: same results as in one, and no process left behind, however they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignment.config.stages import ComputeConfig, PretrainConfig, RewardConfig, SFTConfig
from alignment.distributed.collectives import OtherFailed
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.journal import Journal, read_metrics
from alignment.methods.ppo import METHOD as PPO
from alignment.ppo import PPOConfig
from alignment.records import Document
from alignment.rules.form import FormatLimits
from alignment.rules.options import AlignOptions, RuleOption
from alignment.rules.safety import SafetyLists
from alignment.stage import Stage, Step
from alignment.stages import PRETRAIN, REWARD, SFT, VALIDATION, read_step
from alignment.worker import error_record
from flows.pipeline.accelerate import launch
from flows.pipeline.dag import keys, steps
from flows.pipeline.join import machine_rank
from flows.recipe.compute import launch_options
from flows.recipe.schema import check_files, load_recipe
from tests.alignment.tiny_world import LINES, SIZES, comparison, demonstration, make_tokenizer, prompt, write
from tests.conftest import TINY

ROOT = Path(__file__).parents[3]
ONE = ComputeConfig(device="cpu", precision="float32")
TWO = ONE.model_copy(update={"processes": 2})
SHARDED = TWO.model_copy(update={"shard": True})
Work = tuple[Step, dict[str, Path]]  # a step, and the directories of its inputs
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eve", "Fay", "Gus")
# Sums in another order, in single precision: seen were 1e-6 of weights and of what is logged.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of the stages before training, by the names that training has for them."""
    place = tmp_path_factory.mktemp("inputs")
    make_tokenizer(place)
    documents = [Document(text=line) for line in LINES * 12]
    write(place / "corpus" / "heldout.jsonl", documents[:4])
    answers = [demonstration(f"What does {name} play {n}?", f"{name} plays.") for name in NAMES for n in (1, 2)]
    rows = [comparison(f"Who is {name}?", f"{name} plays.", word) for name in NAMES for word in ("A cat.", "Nobody.")]
    tested = [comparison("What is new?", "Ada plays.", "A cat."), comparison("What is old?", "Bo plays.", "Nobody.")]
    write(place / "comparisons" / "heldout_annotators.jsonl", [])
    write(place / "comparisons" / "heldout_prompts.jsonl", tested)
    return {
        "corpus": write(place / "corpus" / "train.jsonl", documents),
        "tokenizer": place / "tokenizer",
        "demonstrations": write(place / "demonstrations" / "demonstrations.jsonl", answers[:13]),
        "comparisons": write(place / "comparisons" / "train.jsonl", rows),
        "prompts": write(place / "prompts" / "prompts.jsonl", [prompt(f"What does {name} play?") for name in NAMES]),
    }


def all_steps(inputs: Mapping[str, Path], made: Path) -> dict[str, Work]:
    """A step a training stage, with last batches that leave a process little or nothing to do."""
    paths = {
        **inputs,
        "base": made / "pretrain",
        "sft": made / "sft",
        "reward": made / "reward",
        "validation": made / "validation",
    }
    reward = RewardConfig(epochs=2, batch_prompts=3, max_length_tokens=64, log_every_steps=1, lm_coef=0.1)
    ppo = PPOConfig(
        steps=3,
        batch_size=9,
        minibatch_size=3,
        max_new_tokens=8,
        ptx_coef=0.5,
        ptx_batch_size=3,
        snapshot_every_steps=2,
        policy_learning_rate=1e-3,
        value_learning_rate=1e-3,
    )
    align = AlignOptions(
        rules=(RuleOption(name="format", weight=0.5),),
        safety=SafetyLists(),
        format=FormatLimits(),
        ptx_min_reward=-9.0,
        select_prompts=5,
    )
    sft = SFTConfig(epochs=2, batch_size=4, max_length_tokens=64, log_every_steps=1)
    wanted: list[tuple[Stage[Any], Any, tuple[str, ...]]] = [
        (PRETRAIN, pretraining(), ("corpus", "tokenizer")),
        (SFT, sft, SFT.inputs),
        (REWARD, reward.model_copy(update={"members": 2}), REWARD.inputs),
        (VALIDATION, reward.model_copy(update={"epochs": 3}), VALIDATION.inputs),
        (PPO, ppo, (*PPO.inputs, "validation")),
    ]
    return {
        stage.name: (
            Step(stage, config, seed=3, align=align if stage is PPO else None, compute=ONE),
            {name: paths[name] for name in names},
        )
        for stage, config, names in wanted
    }


def pretraining(**options: Any) -> PretrainConfig:
    told = {"model": SIZES, "epochs": 2, "batch_sequences": 8, "checkpoint_every_steps": 2, "log_every_steps": 1}
    return PretrainConfig(**{**told, **options})


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Work]]:
    """What one process makes, each stage from the ones before, and figures.json beside; and the steps."""
    made = tmp_path_factory.mktemp("alone")
    todo = all_steps(inputs, made)
    for stage, (step, directories) in todo.items():
        figures = step.perform(made / stage, Journal(made / stage), directories)
        (made / stage / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    return made, todo


@pytest.fixture(scope="module")
def together(alone: tuple[Path, dict[str, Work]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of the same steps."""
    return launched(tmp_path_factory.mktemp("together"), alone[1], TWO)


@pytest.fixture(scope="module")
def sharded(alone: tuple[Path, dict[str, Work]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of them with models that are sharded."""
    return launched(tmp_path_factory.mktemp("sharded"), alone[1], SHARDED)


def launched(made: Path, todo: Mapping[str, Work], compute: ComputeConfig) -> Path:
    """The steps in several processes, one after the other."""
    for stage, (step, directories) in todo.items():
        (made / stage / "launch").mkdir(parents=True)
        text = replace(step, compute=compute).to_json(directories)
        (made / stage / "launch" / "step.json").write_text(text, encoding="utf-8")
    options = made / "accelerate.yaml"
    options.write_text(yaml.safe_dump(launch_options(compute)), encoding="utf-8")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(options)]
    work = ["--main_process_port", "0", "-m", "tests.flows.steps_in_processes"]
    places = [str(made / stage / "launch") for stage in todo]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launcher, *work, *places], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.long
@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "validation", "ppo"])
@pytest.mark.parametrize("way", ["together", "sharded"])
def test_two_processes_make_what_one_makes(
    alone: tuple[Path, dict[str, Work]], stage: str, way: str, request: pytest.FixtureRequest
) -> None:
    one, two = alone[0] / stage, request.getfixturevalue(way) / stage
    figures = [json.loads(path.read_text()) for path in (one / "figures.json", two / "launch" / "figures.json")]
    assert figures[1] == pytest.approx(figures[0], rel=TOLERANCE, abs=TOLERANCE)
    lines = [read_metrics(place / "metrics.jsonl") for place in (one, two)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for here, there in zip(*lines, strict=True):
        values = [{k: v for k, v in line["values"].items() if not of_the_cut(k)} for line in (here, there)]
        assert values[1] == pytest.approx(values[0], rel=TOLERANCE, abs=TOLERANCE)
    files = [{str(path.relative_to(place)) for path in place.rglob("*")} for place in (one, two)]
    for_resuming = ("launch", "checkpoint") if stage == "sft" and way == "sharded" else ("launch",)
    written, expected = ({n for n in names if "rng_state" not in n} for names in files[::-1])  # one a process
    expected -= {"figures.json"}
    assert {n for n in written if not n.startswith(for_resuming)} == {
        n for n in expected if not n.startswith(for_resuming)
    }
    for name in (n for n in written if n.endswith(".safetensors") and not n.startswith(for_resuming)):
        torch.testing.assert_close(load_file(two / name), load_file(one / name), rtol=0, atol=TOLERANCE)


def of_the_cut(name: str) -> bool:
    """Whether a logged value tells of time, or of how the work was cut."""
    return "second" in name or name in ("padding_share", "sampling_mismatch")


# The launcher and its processes


def family(out: Path) -> list[psutil.Process]:
    """The launcher of a stage's directory and its processes, by their command lines."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(word == str(out / "launch") for word in process.cmdline()) and process.status() != "zombie":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def are_gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended within some minutes; who is killed may need a moment to be gone."""
    return not psutil.wait_procs(processes, timeout=180)[1]


@pytest.fixture
def long_step(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """A pretraining of 300 steps with a checkpoint every other."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    paths = {name: inputs[name] for name in ("corpus", "tokenizer")}
    return Step(PRETRAIN, pretraining(epochs=100), seed=3, compute=TWO), paths


PARENT = """
import sys
from pathlib import Path
from alignment.journal import Journal
from alignment.stages import read_step
from flows.pipeline.accelerate import launch
out = Path(sys.argv[1])
step, inputs = read_step(sys.argv[2])
launch(step, out, Journal(out), inputs)
"""


@pytest.mark.long
def test_a_killed_flow_leaves_no_process_and_two_go_on_from_the_checkpoint(long_step: Work, tmp_path: Path) -> None:
    out, one = tmp_path / "pretrain-0.partial", tmp_path / "one"
    command = [sys.executable, "-c", PARENT, str(out), long_step[0].to_json(long_step[1])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 600
        while not (out / "checkpoint" / "state.pt").exists():
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        left = family(out)
        parent.send_signal(signal.SIGKILL)
    assert len(left) == 3 and are_gone(left)
    reached = read_metrics(out / "metrics.jsonl")[-1]["step"]
    step, directories = long_step
    figures = launch(step, out, Journal(out), directories)
    assert 2 <= reached < 300 and family(out) == [] and not (out / "launch").exists()
    steps_of = [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line["values"]]
    assert steps_of == list(range(1, 301))
    assert figures == pytest.approx(step.perform(one, Journal(one), directories), rel=1e-3)


class Cancelled(BaseException):
    """What a signal becomes in a flow run that is cancelled."""


@contextmanager
def once_it_trains(out: Path, act: Callable[[list[psutil.Process]], None]) -> Iterator[list[psutil.Process]]:
    """Beside what is done here: `act` on the launcher and its processes after the first checkpoint. Yields them."""
    found: list[psutil.Process] = []
    gone = threading.Event()

    def watch() -> None:
        while not (out / "checkpoint" / "state.pt").exists():
            if gone.wait(0.02):
                return
        found.extend(sorted(family(out), key=lambda process: process.create_time()))
        act(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield found
    gone.set()
    thread.join()


@pytest.mark.long
def test_a_cancelled_stage_leaves_no_process(long_step: Work, tmp_path: Path) -> None:
    """Prefect makes an exception of SIGTERM in the flow's process."""
    out = tmp_path / "pretrain-1.partial"

    def cancelled(*_: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, cancelled)
    try:
        with once_it_trains(out, lambda _: os.kill(os.getpid(), signal.SIGTERM)) as found, pytest.raises(Cancelled):
            launch(long_step[0], out, Journal(out), long_step[1])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(found) == 3 and not any(process.is_running() for process in found)


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others_and_the_log_says_so(
    long_step: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "pretrain-2.partial"
    with (
        caplog.at_level("INFO"),
        once_it_trains(out, lambda found: found[2].kill()) as found,
        pytest.raises(TrainingError, match=r"without an error message; exit code -9 .*pretrain-2\.log") as raised,
    ):
        launch(long_step[0], out, Journal(out), long_step[1])
    assert "failed (exitcode: -9) local_rank: " in str(raised.value)
    assert any(
        "failed (exitcode: -9)" in record.message
        for record in caplog.records
        if record.name == "flows.pipeline.accelerate"
    )
    assert len(found) == 3 and not any(process.is_running() for process in found)


@pytest.mark.long
def test_an_error_of_a_process_is_raised_as_what_it_was(long_step: Work, tmp_path: Path) -> None:
    out = tmp_path / "pretrain-3.partial"
    diverging = replace(long_step[0], config=pretraining(learning_rate=1e30, epochs=3))
    with pytest.raises(TrainingError, match=r"the loss is .*nan at step .*lower `pretrain.learning_rate`") as raised:
        launch(diverging, out, Journal(out), long_step[1])
    assert "process 0: the loss is " in raised.value.__notes__[0] and family(out) == []
    assert "process 0: the loss is " in (tmp_path / "home" / "logs" / "pretrain-3.log").read_text()


@pytest.mark.long
def test_two_machines_make_what_one_process_makes(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both machines are this one: a launcher for each, which meet at an address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home, one, out = tmp_path / "home", tmp_path / "one", tmp_path / "pretrain-4.partial"
    for name, value in {"RLHF_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "two-machines.yaml"
    options = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": port}
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    paths = {name: inputs[name] for name in ("corpus", "tokenizer")}
    step = Step(PRETRAIN, pretraining(), seed=3, compute=TWO.model_copy(update={"accelerate_config": str(file)}))
    environment = os.environ | {"NODE_RANK": "1"}
    command = [sys.executable, "-m", "flows.pipeline.join"]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as other:
        figures = launch(step, out, Journal(out), paths)
        assert not (home / "launch.json").exists()
        other.send_signal(signal.SIGTERM)
        other.wait(timeout=120)
    assert (home / "logs" / "pretrain-4-machine-1.log").exists() and family(out) == []
    alone = replace(step, compute=ONE).perform(one, Journal(one), paths)
    assert figures == pytest.approx(alone, rel=TOLERANCE)


def test_a_machine_without_a_number_does_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("", "0", "x"):
        monkeypatch.setenv("NODE_RANK", rank)
        with pytest.raises(ConfigError, match=f"NODE_RANK is '{rank}': set it to this machine's number"):
            machine_rank()


def test_an_error_is_told_from_its_echo() -> None:
    """An error that another process raised says less than the one there; so does a connection to one that is gone."""
    assert error_record(DataError("no rows")) == {"kind": "DataError", "message": "no rows", "tells": 2}
    foreign = error_record(ZeroDivisionError("by 0"))
    assert foreign == {"kind": "ZeroDivisionError", "message": "ZeroDivisionError: by 0", "tells": 2}
    try:
        try:
            raise OtherFailed("process 1 failed with ZeroDivisionError: by 0")
        except TrainingError as error:
            raise TrainingError(f"step 3: {error}") from error
    except TrainingError as error:
        assert error_record(error) == {"kind": "TrainingError", "message": str(error), "tells": 1}
    assert error_record(RuntimeError("[/gloo/transport/tcp/pair.cc:537] Connection reset by peer"))["tells"] == 0


def test_a_step_travels_to_another_process_as_it_is(inputs: dict[str, Path], tmp_path: Path) -> None:
    for step, directories in all_steps(inputs, tmp_path).values():
        read, paths = read_step(replace(step, compute=TWO).to_json(directories))
        assert paths == directories and read.stage is step.stage
        assert (read.config, read.align, read.seed, read.compute) == (step.config, step.align, 3, TWO)
        assert read.options == step.options


# What is refused before anything runs


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["compute.accelerate_config=a.yaml"], "compute: accelerate_config a.yaml starts several processes"),
        (["compute.shard=true"], "compute: shard splits models over several processes, but processes is 1"),
        (["compute.processes=0"], "compute.processes: 0 is not allowed; allowed is a whole number at least 1"),
        (["compute.processes=2", "align.method=rloo"], "align.method rloo runs in one process: set compute.processes"),
        (["compute.processes=9"], "reward.batch_prompts 8 leaves some of the 9 processes without work"),
    ],
)
def test_what_cannot_be_done_in_several_processes_is_refused(told: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(TINY), told)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read .*No such file.*`accelerate config` writes such a file"),
        ("a: [", "cannot be read"),
        ("- 1", "holds no options"),
        ("distributed_type: DEEPSPEED", "has distributed_type: DEEPSPEED.*DeepSpeed is not supported"),
        ("distributed_type: MULTI_CPU", "has distributed_type: MULTI_CPU"),
        ("use_cpu: false", "has use_cpu: False, but compute.device 'cpu' is cpu here: remove use_cpu"),
        ("num_machines: 2", "has num_machines: 2, but says not where they meet: set main_process_ip"),
        ("num_machines: 3", "has num_machines: 3, over which compute.processes 2 cannot be divided"),
        ("num_machines: a", "has num_machines: a, over which compute.processes 2 cannot be divided"),
        ("mixed_precision: bf16", "has mixed_precision: bf16.*set compute.precision"),
    ],
)
def test_launch_files_that_no_stage_can_be_started_with_are_refused(
    text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "launch.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    recipe = load_recipe(str(TINY), ["compute.processes=2", f"compute.accelerate_config={path}"])
    with pytest.raises(ConfigError, match=words):
        check_files(recipe)


def test_the_launch_file_of_two_processes_is_accepted_and_processes_are_those_of_the_recipe() -> None:
    path = str(ROOT / "deploy" / "accelerate" / "cpu-2.yaml")
    assert launch_options(ComputeConfig(processes=3, accelerate_config=path))["num_processes"] == 3
    assert launch_options(ComputeConfig(processes=2, accelerate_config=path)) == launch_options(TWO)


def test_models_are_sharded_by_the_recipe_or_by_the_launch_file(tmp_path: Path) -> None:
    path = str(ROOT / "deploy" / "accelerate" / "fsdp.yaml")
    options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    ours = launch_options(SHARDED)
    assert ours["distributed_type"] == "FSDP" and ours["fsdp_config"] == options["fsdp_config"] and ours["use_cpu"]
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump(options | {"use_cpu": True}), encoding="utf-8")
    theirs = launch_options(TWO.model_copy(update={"accelerate_config": str(tmp_path / "fsdp.yaml")}))
    assert theirs == ours


def test_several_machines_meet_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text("num_machines: 2\nmain_process_ip: 10.0.0.1\nmain_process_port: 29500\n", encoding="utf-8")
    compute = TWO.model_copy(update={"accelerate_config": str(path)})
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.2")
    options = launch_options(compute)
    assert (options["num_processes"], options["machine_rank"]) == (2, 1)
    assert (options["main_process_ip"], options["main_process_port"]) == ("10.0.0.2", 29500)


def test_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launch_options(ComputeConfig(processes=2))["use_cpu"] is False
    with pytest.raises(ConfigError, match=r"compute.processes 3 need 3 GPUs on each machine, but this one has 2"):
        launch_options(ComputeConfig(processes=3))


def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"compute.device is 'cuda' and PyTorch .* finds no GPU"):
        check_files(load_recipe(str(TINY), ["compute.device=cuda"]))


def test_processes_are_no_part_of_a_key_and_of_training_stages_alone() -> None:
    one, two = steps(load_recipe(str(TINY))), steps(load_recipe(str(TINY), ["compute.processes=2"]))
    assert keys(one) == keys(two)
    launched = [stage for stage, step in two.items() if step.compute.processes == 2]
    assert launched == ["pretrain", "sft", "reward", "ppo"]
