"""The pipeline under SIGKILL at all kinds of moments: it ends as if never interrupted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flows.recipe.schema import load_recipe
from flows.stack import services, stack
from flows.stack.services import NAMES
from tests.chaos.aftermath import check_judgements, check_models, check_outputs, check_runs
from tests.chaos.content import contents
from tests.chaos.deployed import Deployed
from tests.chaos.progress import BEGUN, CHECKPOINT, REGISTERING, UPLOADING, WORKED, Progress
from tests.chaos.storm import (
    DEPLOYED,
    IN_A_TERMINAL,
    Plan,
    Run,
    Storm,
    TerminalRun,
    environment,
    kill_server,
    plan,
    table,
)
from tests.conftest import TINY
from tests.labeling.helpers import free_port

pytestmark = pytest.mark.server
OPTIONS = ["pretrain.checkpoint_every_steps=10"]
ANNOTATIONS = {"ranking": 20, "pairwise": 12}  # tiny: 10 and 6 tasks, two judgements each
KILLS = int(os.environ.get("RLHF_CHAOS_KILLS", "30"))
SEED = int(os.environ.get("RLHF_CHAOS_SEED", "2"))
KILLS_OF_A_DEPLOYMENT = 7
OUTAGE_SECONDS = float(os.environ.get("RLHF_CHAOS_OUTAGE_SECONDS", "180"))
LONG_PPO = ["ppo.steps=1000", "ppo.batch_size=64", "ppo.snapshot_every_steps=250", "ppo.checkpoint_every_steps=50"]
ONE_OF_EACH = [
    Plan(victim="flow", stage="pretrain", state=CHECKPOINT, delay=0.3),
    Plan(victim="mlflow", stage="sft", state=UPLOADING, delay=0.0),
    Plan(victim="label-studio", stage="labeling", state=BEGUN, delay=4.0, whole=False),
    Plan(victim="flow", stage="reward", state=REGISTERING, delay=0.05),
    Plan(victim="prefect", stage="ppo", state=BEGUN, delay=0.5),
    Plan(victim="machine", stage="evaluate", state=WORKED, delay=0.0),
]
UNBROKEN = """
import sys
from flows.pipeline.flow import rlhf
from flows.recipe.schema import load_recipe
rlhf(load_recipe(sys.argv[1], sys.argv[2:]))
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A running stack of its own, on ports of its own."""
    home = tmp_path / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "START_SECONDS", 900.0)  # other tests may keep the machine busy
        for name in NAMES:
            patch.setenv(services.port_variable(name), str(free_port()))
        try:
            stack.up(home)
            yield home
        finally:
            stack.down(home)


def unbroken(home: Path, place: Path, options: Sequence[str] = OPTIONS) -> Path:
    """The same pipeline without a kill, on the same servers but for an MLflow of its own; returns its home."""
    place.mkdir()
    store = f"sqlite:///{place / 'mlflow.db'}"
    own = {"RLHF_HOME": str(place), "MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store}
    told = environment(home) | own
    command = [sys.executable, "-c", UNBROKEN, str(TINY), *options, "labeling.title=unbroken"]
    subprocess.run(command, env=told, cwd=place, check=True, timeout=3600)  # other tests may keep the machine busy
    return place


def weather(home: Path, kills: int | Sequence[Plan], seed: int = 0, *, deployed: bool = False) -> Storm:
    """A storm over the tiny pipeline, after which everything must be as it should be: so many kills, or these."""
    overrides = [*OPTIONS, "labeling.title=storm"]
    recipe = load_recipe(str(TINY), overrides)
    progress = Progress(home, recipe)
    run: Run = Deployed(home, recipe) if deployed else TerminalRun(home, TINY, overrides)
    storm = Storm(home, run, progress)
    try:
        if isinstance(kills, int):
            kills = plan(kills, seed, progress, DEPLOYED if deployed else IN_A_TERMINAL)
        storm.endure(kills)
    finally:
        run.close()
        write_down(storm, run, seed)
    check_all(home, progress, "storm")
    return storm


def check_all(home: Path, progress: Progress, title: str) -> None:
    """Everything is as it should be after a pipeline."""
    running = stack.connect(home)
    check_outputs(home, progress)
    check_runs(running, progress)
    check_models(running, home, progress)
    check_judgements(running, title, ANNOTATIONS)


def write_down(storm: Storm, run: Run, seed: int) -> None:
    """The kills as a table, and whole in the file that RLHF_CHAOS_LOG names."""
    told = {by: table(storm.kills, by) for by in ("victim", "stage", "state")}
    told |= {
        "seed": seed,
        "kills": len(storm.kills),
        "starts": run.starts,
        "failed": storm.failed,
        "seconds": round(storm.seconds),
    }
    print(json.dumps(told, indent=1))
    if name := os.environ.get("RLHF_CHAOS_LOG"):
        whole = told | {"log": [kill.model_dump() for kill in storm.kills]}
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")


@pytest.mark.long
def test_the_tiny_pipeline_survives_a_kill_of_each_kind(home: Path, tmp_path: Path) -> None:
    weather(home, ONE_OF_EACH)
    assert contents(home) == contents(unbroken(home, tmp_path / "unbroken"))


@pytest.mark.chaos
def test_a_deployment_survives_kills_of_its_worker(home: Path, tmp_path: Path) -> None:
    weather(home, KILLS_OF_A_DEPLOYMENT, SEED, deployed=True)
    assert contents(home) == contents(unbroken(home, tmp_path / "unbroken"))


@pytest.mark.chaos
def test_the_tiny_pipeline_survives_a_storm(home: Path, tmp_path: Path) -> None:
    weather(home, KILLS, SEED)
    assert contents(home) == contents(unbroken(home, tmp_path / "unbroken"))


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("long", "state"), [(LONG_PPO, CHECKPOINT), ([], WORKED)], ids=["while it trains", "at its end"]
)
def test_ppo_does_without_mlflow_for_minutes(home: Path, tmp_path: Path, long: list[str], state: int) -> None:
    options = [*OPTIONS, *long]
    overrides = [*options, "labeling.title=outage"]
    progress = Progress(home, load_recipe(str(TINY), overrides))
    run = TerminalRun(home, TINY, overrides)
    try:
        run.start()
        while not progress.reached(("ppo", state)):
            assert run.ended() is None, run.log.read_text()
            time.sleep(0.05)
        kill_server(stack.read_state(home).servers["mlflow"].process, whole=True)
        before = steps_of_ppo(home)
        time.sleep(OUTAGE_SECONDS)
        during = steps_of_ppo(home)
        assert run.ended() is None, run.log.read_text()
        assert progress.here() == ("ppo", state), "PPO ended before MLflow was back"
        stack.up(home)
        while (ended := run.ended()) is None:
            time.sleep(0.5)
    finally:
        run.close()
    print(f"PPO was at step {before} when MLflow went, and at {during} when it came back")
    assert ended == 0, run.log.read_text()
    assert run.starts == 1
    assert state == WORKED or during > before
    check_all(home, progress, "outage")
    assert contents(home) == contents(unbroken(home, tmp_path / "unbroken", options))


def steps_of_ppo(home: Path) -> int:
    """How many steps PPO has written down."""
    (metrics,) = (home / "artifacts").glob("ppo-*/metrics.jsonl")
    return len({json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()})
