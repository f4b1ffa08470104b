"""An interrupted run resumes bit for bit: same weights, same log."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment.errors import CheckpointError, ConfigError
from alignment.journal import Journal
from alignment.ppo.train import train_ppo
from tests.alignment.ppo import world

pytestmark = pytest.mark.slow

TEXT = [[3, 4, 5, 6], [7, 8, 9, 10, 11], [12, 13]]
ROOT = Path(__file__).parents[3]


def options(**changes):
    """Everything that carries state from step to step."""
    return world.config(
        **{
            "steps": 5,
            "checkpoint_every_steps": 2,
            "kl_target": 1.0,
            "ema_decay": 0.9,
            "ptx_coef": 0.1,
            "ptx_batch_size": 2,
            "schedule": "cosine",
            "warmup_steps": 1,
            "early_stop_kl": 500.0,
            **changes,
        }
    )


LAYOUTS = {
    "separate": {},
    "shared_trunk": {"layout": "shared_trunk", "value_coef": 0.3},
    "lora": {"layout": "lora", "lora_rank": 4},
}


def run(out: Path, reward=world.count_w7, layout="separate", **changes):
    """One run with all of it."""
    changes = {**LAYOUTS[layout], **changes}
    return train_ppo(
        world.policy(), world.tokenizer(), world.PROMPTS, reward, options(**changes), ptx_sequences=TEXT, out=out
    )


class Stop(Exception):
    """What cuts a run off."""


def count_until(calls: int, end):
    """count_w7 that calls `end` at its call number `calls`."""
    seen = 0

    def count_w7(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal seen
        seen += 1
        if seen == calls:
            end()
        return world.count_w7(prompts, responses)

    return count_w7


def interrupt() -> None:
    raise Stop


def assert_same(a: Path, b: Path) -> None:
    for place in ("model", "snapshots/step-00002", "snapshots/step-00004", "snapshots/step-00005"):
        first, second = (load_file(out / place / "model.safetensors") for out in (a, b))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(out / "checkpoint" / "step-00005.pt", weights_only=True) for out in (a, b)]
    for part in ("value_model", "policy"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part])
    assert states[0]["extra"] == states[1]["extra"]
    assert world.logged(a) == world.logged(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.fixture(scope="module", params=LAYOUTS)
def whole_of(request, whole, tmp_path_factory) -> tuple[str, Path]:
    """A layout and a run in it that nothing cut off."""
    if request.param == "separate":
        return request.param, whole
    out = tmp_path_factory.mktemp(request.param)
    run(out, layout=request.param)
    return request.param, out


def test_resume_after_an_error(whole, tmp_path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, count_until(4, interrupt))  # step 4; the last checkpoint is that of step 2
    assert not (tmp_path / "model").exists()
    assert [line["step"] for line in world.logged(tmp_path)] == [1, 2, 3]
    torch.manual_seed(12345)
    run(tmp_path)
    assert_same(whole, tmp_path)


def test_resume_after_sigkill(whole_of, tmp_path) -> None:
    layout, whole = whole_of
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.alignment.ppo import test_resume as t;"
        "import torch; torch.set_num_threads(1);"
        "t.run(Path(sys.argv[1]), t.count_until(4, lambda: os.kill(os.getpid(), signal.SIGKILL)),"
        " layout=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), layout]
    killed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    run(tmp_path, layout=layout)
    assert_same(whole, tmp_path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, count_until(5, interrupt))
    newest = tmp_path / "checkpoint" / "step-00004.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-00004\.pt cannot be read"):
        run(tmp_path)
    assert_same(whole, tmp_path)
    for path in (tmp_path / "checkpoint").glob("*.pt"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the checkpoints"):
        run(tmp_path)


def test_another_run_is_refused(whole) -> None:
    with pytest.raises(ConfigError, match=r"option clip_range \(was 0\.2, is 0\.3\)"):
        run(whole, clip_range=0.3)
    with pytest.raises(ConfigError, match="policy"):
        train_ppo(
            world.policy(seed=9),
            world.tokenizer(),
            world.PROMPTS,
            world.count_w7,
            options(),
            ptx_sequences=TEXT,
            out=whole,
        )


def test_a_finished_run_is_returned_as_it_is(whole) -> None:
    before = world.logged(whole)
    result = run(whole)
    assert result.steps == 5 and world.logged(whole) == before
    assert before[-1].items() <= {"step": 5, **result.metrics}.items()


def test_what_a_stage_said_after_the_last_step_does_not_hide_its_metrics(whole, tmp_path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    Journal(out).log({"accuracy": 0.5}, 0)
    assert run(out).metrics == run(whole).metrics != {}
