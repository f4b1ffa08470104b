"""Two processes started by `accelerate launch` make what one makes; an error in one of them ends both.

They do so with whole models in each (deploy/accelerate/cpu-2.yaml), and with models split over them (fsdp.yaml, made to
use the CPU). All in double precision, where an averaged gradient, or one that is short of a share, would not go unseen.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignment.distributed import collectives as processes
from alignment.distributed import sharding
from alignment.rollout.build import URL
from tests.alignment.ppo import processes as runs
from tests.alignment.ppo import world
from tests.alignment.rollout.stand_in import StandIn
from tests.rounding import norms_in_double_precision

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
LAUNCH_FILES = ROOT / "deploy" / "accelerate"
COMPARED = ("uneven", "empty", "stops", "shared_trunk", "vllm")
WHOLE = (*COMPARED, "lora", "raises", "resumed", "few", "different", "deepspeed")
SPLIT = (*COMPARED, "recomputed", "float32", "bfloat16", "raises", "resumed", "parts")
REFUSED = {
    "lora": "adapters cannot run under FSDP",
    "version_1": "set fsdp_version to 2",
    "offloaded": "set fsdp_offload_params to false",
    "loaded_once": "set fsdp_cpu_ram_efficient_loading to false",
    "recomputed_by_fsdp": "gradient_checkpointing to true",
}
OF_THE_CUT = ("padding_share", "sampling_mismatch")  # these tell how the work was cut, and of rounding


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[StandIn]:
    """What "vllm" samples from, and all of its processes are told of."""
    with norms_in_double_precision(), StandIn(world.policy().double()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(URL, server.url)
        yield server


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The runs in this process."""
    out = tmp_path_factory.mktemp("alone")
    for name in (*COMPARED, "lora", "recomputed", "float32", "bfloat16", "raises"):
        runs.run(out, name)
    assert not torch.distributed.is_initialized()
    return out


Launched = tuple[Path, subprocess.CompletedProcess]


def launched(out: Path, launch_file: Path, names: Iterable[str]) -> Launched:
    """These runs in two processes, "resumed" from what one process left; and what the launcher said."""
    with pytest.raises(ZeroDivisionError):
        runs.run(out, "resumed", runs.raising(3, process=0))
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_file))
    command = [*launcher, "--main_process_port", "0", "-m", "tests.alignment.ppo.processes", str(out), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=1200)
    return out, done


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Launched:
    """Runs with whole models in each process."""
    return launched(tmp_path_factory.mktemp("together"), LAUNCH_FILES / "cpu-2.yaml", WHOLE)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Launched:
    """Runs with models split over the processes, as fsdp.yaml has it for GPUs."""
    out = tmp_path_factory.mktemp("split")
    options = yaml.safe_load((LAUNCH_FILES / "fsdp.yaml").read_text(encoding="utf-8"))
    on_cpu = tmp_path_factory.mktemp("launch") / "fsdp-cpu-2.yaml"
    on_cpu.write_text(yaml.safe_dump(options | {"use_cpu": True, "num_processes": 2}), encoding="utf-8")
    return launched(out, on_cpu, (*SPLIT, *REFUSED, "breaks"))


def assert_same_log(one: Path, two: Path, tolerance: float = 1e-10) -> None:
    """Logged values agree, but for the rounding of sums in another order."""
    first, second = world.logged(one), world.logged(two)
    assert len(first) == len(second) > 0
    for line, other in zip(first, second, strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - set(OF_THE_CUT):
            assert other[name] == pytest.approx(line[name], rel=tolerance, abs=tolerance), name


def assert_same_run(one: Path, two: Path) -> None:
    """So do snapshots and the published model, in double precision."""
    assert_same_log(one, two)
    places = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    assert places == sorted(path.relative_to(two) for path in two.rglob("model.safetensors"))
    for place in places:
        torch.testing.assert_close(load_file(two / place), load_file(one / place), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [*COMPARED, "lora"])
def test_two_processes_make_what_one_makes(alone, together, name) -> None:
    out, done = together
    assert (out / name / "model").exists(), done.stderr
    assert_same_run(alone / name, out / name)


@pytest.mark.parametrize("name", [*COMPARED, "recomputed"])
def test_two_processes_with_split_models_make_what_one_makes(alone, split, name) -> None:
    out, done = split
    assert (out / name / "model").exists(), done.stderr
    assert_same_run(alone / name, out / name)


@pytest.mark.parametrize(("name", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_split_models_in_single_and_half_precision(alone, split, name, tolerance) -> None:
    out, done = split
    assert (out / name / "model").exists(), done.stderr
    assert_same_log(alone / name, out / name, tolerance)


def test_each_process_keeps_its_part_alone(split) -> None:
    """Of weights, gradients, average and both of Adam's moments: the parts add up to the whole, in near halves."""
    out, _ = split
    sizes = [json.loads((out / f"parts-{process}.json").read_text()) for process in (0, 1)]
    assert sizes[0].keys() == {"weights", "gradients", "average", "exp_avg", "exp_avg_sq"}
    for name, (here, whole) in sizes[0].items():
        assert whole == sizes[1][name][1] == sum(weight.numel() for weight in world.policy().parameters())
        assert here + sizes[1][name][0] == whole and max(here, sizes[1][name][0]) < 0.51 * whole


def test_the_runs_are_not_idle(alone) -> None:
    """Weights move, the coefficient adapts, updates and a run are ended: there is something to agree on."""
    uneven, stops = world.logged(alone / "uneven"), world.logged(alone / "stops")
    assert uneven[0]["kl_coef"] != uneven[-1]["kl_coef"] and uneven[-1]["ptx_loss"] > 0
    assert any("update_stopped" in line for line in stops) and len(stops) < 12
    places = [alone / "uneven" / place / "model.safetensors" for place in ("snapshots/step-00000", "model")]
    start, end = map(load_file, places)
    assert max(float((end[name] - start[name]).abs().max()) for name in start) > 1e-4


@pytest.mark.parametrize("way", ["together", "split"])
def test_an_error_in_one_process_ends_all(way, request) -> None:
    out, done = request.getfixturevalue(way)
    assert done.returncode != 0
    assert (out / "raises" / "process-1.txt").read_text() == "ZeroDivisionError: no reward today"
    told = (out / "raises" / "process-0.txt").read_text()
    assert "TrainingError: step 3: process 1 failed with ZeroDivisionError: no reward today" in told
    assert "step-00002.pt" in told and not (out / "raises" / "model").exists()


@pytest.mark.parametrize("way", ["together", "split"])
def test_one_process_goes_on_where_two_stopped(alone, way, request) -> None:
    out, _ = request.getfixturevalue(way)
    assert [line["step"] for line in world.logged(out / "raises")] == [1, 2]
    runs.run(out, "raises")
    assert_same_run(alone / "raises", out / "raises")


@pytest.mark.parametrize("way", ["together", "split"])
def test_two_processes_go_on_where_one_stopped(alone, way, request) -> None:
    out, done = request.getfixturevalue(way)
    assert (out / "resumed" / "model").exists(), done.stderr
    assert_same_run(alone / "raises", out / "resumed")


def test_what_cannot_be_shared_out_is_refused(together) -> None:
    out, _ = together
    for process in (0, 1):
        told = (out / "few" / f"process-{process}.txt").read_text()
        assert "ConfigError: batch_size 1 leaves some of the 2 processes" in told and "at least 2" in told
        told = (out / "different" / f"process-{process}.txt").read_text()
        assert "process 1 differs from process 0: policy (was" in told and "the same arguments" in told
        assert "cannot run under DeepSpeed" in (out / "deepspeed" / f"process-{process}.txt").read_text()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused(split, name) -> None:
    out, _ = split
    for process in (0, 1):
        told = (out / name / f"process-{process}.txt").read_text()
        assert told.startswith("ConfigError: ") and REFUSED[name] in told


def test_an_error_where_all_processes_work_on_one_model_ends_all(split) -> None:
    """Nobody can be told while the others wait within the same work: it ends, and the launcher ends the others."""
    out, done = split
    told = (out / "breaks" / "process-1.txt").read_text()
    assert told.startswith("TrainingError: step 1: MemoryError: no room left (in a collective operation")
    assert done.returncode != 0 and not (out / "breaks" / "model").exists()


def test_a_single_process_meets_nobody(monkeypatch) -> None:
    assert processes.share_of("abc") == ["a", "b", "c"]
    assert processes.gathered(max, 1, 2) == [2] and processes.from_main(3) == 3
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    processes.sum_gradients(list(model.parameters()))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.split((world.policy(),), (world.reward_model(),)) is None
    assert model.weight.grad is not None and model.weight.grad.tolist() == [[1.0, 1.0]]
    assert not torch.distributed.is_initialized()


def test_gradients_travel_in_buckets_of_one_type(monkeypatch) -> None:
    monkeypatch.setattr(processes, "BUCKET_VALUES", 6)
    sizes = [(4, torch.float32), (2, torch.float32), (1, torch.float32), (9, torch.float32), (1, torch.float64)]
    weights = [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes]
    assert [[len(weight) for weight in bucket] for bucket in processes._buckets(weights)] == [[4, 2], [1], [9], [1]]


@pytest.mark.parametrize("path", sorted(LAUNCH_FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_those_of_accelerate(path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text(encoding="utf-8"))["num_processes"] > 1
