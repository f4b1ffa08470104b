"""A disk that fills up in any stage of a run: the last line names it, and freed, the same command ends well."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.pipeline.dag import needed, steps
from flows.recipe.schema import load_recipe
from flows.stack import services
from flows.stack.processes import StackError
from flows.stack.services import NAMES
from tests.conftest import TINY
from tests.labeling.helpers import REPOSITORY, free_port

STAGES = needed(steps(load_recipe(str(TINY))), "evaluate")
COMMANDS = (["run", str(TINY)], ["status"], ["label", "sync"], ["label", "status"])
PATIENCE_SECONDS = 1200
pytestmark = pytest.mark.long


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A file system of its own of 400 MB."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path, descriptor: int, kilobytes: int) -> bool:
    """Take all but so much of a disk for a file; False if less is free by then."""
    free = os.statvfs(disk)
    try:
        os.posix_fallocate(descriptor, 0, max(1, free.f_bavail * free.f_bsize - kilobytes * 1024))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return free.f_bavail == 0
    return True


@contextmanager
def filled(disk: Path, kilobytes: int) -> Iterator[None]:
    """Within, so much is left on the disk."""
    filler = disk / "filler"
    try:
        with filler.open("wb") as file:
            while not fill(disk, file.fileno(), kilobytes):  # the process writes meanwhile
                pass
        yield
    finally:
        filler.unlink(missing_ok=True)


def start(home: Path, *command: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with everything that it prints in the order of a terminal."""
    told = os.environ | {"RLHF_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "flows.cli.main", *command]
    return subprocess.Popen(run, env=told, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, the last line and all lines."""
    text, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, text.strip().splitlines()[-1], text


def names_the_disk(home: Path, line: str) -> bool:
    return line.startswith("rlhf: ") and f"left on the disk of {home}" in line and "ree some space" in line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack that runs, with its home on a small disk."""
    try:
        services.label_studio_executable()
    except StackError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch, small_disk(tmp_path_factory.mktemp("small") / "disk") as disk:
        for name in NAMES:
            patch.setenv(services.port_variable(name), str(free_port()))
        try:
            code, _, text = end(start(disk / "home", "up"))
            assert code == 0, text
            yield disk / "home"
        finally:
            end(start(disk / "home", "down"))


@pytest.mark.parametrize(
    "command", [["run", str(TINY)], ["status"], ["label", "sync"], ["label", "status"]], ids=" ".join
)
@pytest.mark.parametrize("kilobytes", [0, 1600])
def test_a_full_disk_before_a_command(home: Path, command: list[str], kilobytes: int) -> None:
    with filled(home.parent, kilobytes):
        code, last, text = end(start(home, *command))
    assert "Traceback" not in text, text
    assert names_the_disk(home, last) or (code == 0 and command[0] == "label"), text
    assert "Label Studio is not available" not in text


@pytest.mark.parametrize("kilobytes", [0, 100, 700, 1600])
def test_a_disk_that_fills_up_in_every_stage(home: Path, kilobytes: int) -> None:
    run = ("run", str(TINY), "--set", f"seed={kilobytes}")
    for stage in STAGES:
        done = {path.name for path in (home / "artifacts").glob("*")}
        process = start(home, *run)
        while process.poll() is None and not begun(home, stage, done):
            time.sleep(0.02)
        with filled(home.parent, kilobytes):
            code, last, text = end(process)
        assert code == 0 or names_the_disk(home, last), f"{stage}: {text[-6000:]}"
    code, _, text = end(start(home, "up"))
    assert code == 0, text
    code, last, text = end(start(home, *run))
    assert code == 0 and last.startswith("release tiny"), text[-6000:]


def begun(home: Path, stage: str, done: set[str]) -> bool:
    """Whether a stage works, or has ended since."""
    return any(path.name not in done for path in (home / "artifacts").glob(f"{stage}-*"))


def test_servers_do_not_start_on_a_full_disk(home: Path) -> None:
    end(start(home, "down"))
    with filled(home.parent, 100):
        code, last, text = end(start(home, "up"))
        assert code == 1 and names_the_disk(home, last) and "nothing was started" in last, text
    assert end(start(home, "up"))[0] == 0
