"""The home and its locks belong to one account of the machine: others neither read nor block."""

import fcntl
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows import home, locks
from flows.operations import doctor
from flows.stack import environment, state
from labeling.errors import LabelingError
from labeling.locks import exclusive_lock


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_and_all_that_a_command_writes_are_private_whatever_the_umask(tmp_path: Path) -> None:
    os.umask(0)
    environment.prepare()
    path = tmp_path / "new" / "home"
    assert home.create_home(path) == "" and mode(path) == 0o700 and mode(path.parent) == 0o755
    (path / "annotations.db").touch()
    subprocess.run([sys.executable, "-c", "open('log', 'w'); import os; os.mkdir('artifacts')"], cwd=path, check=True)
    with state.locked(path), locks.open_lock(path, "ppo-1"):
        pass
    modes = {item.name: mode(item) for item in path.rglob("*")}
    files = dict.fromkeys(("annotations.db", "log", "stack.lock", "ppo-1.lock"), 0o600)
    assert modes == files | dict.fromkeys(("artifacts", "locks"), 0o700)


def test_a_home_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    assert "mode 755" in home.create_home(path) and mode(path) == 0o700
    path.chmod(0o755)
    (path / "notes.txt").touch()  # no home, or not yet
    assert home.create_home(path) == "" and mode(path) == 0o755
    (finding,) = doctor.secrets(path)
    assert (finding.what, finding.ok) == ("home", False) and finding.fix.startswith(f"chmod 700 {path}")
    state.write(path, state.State())
    assert "other accounts could enter" in home.create_home(path) and mode(path) == 0o700
    assert not list(doctor.secrets(path))


def test_directories_that_all_accounts_write_to_stay_as_they_are(tmp_path: Path) -> None:
    state.write(tmp_path, state.State())
    tmp_path.chmod(0o1777)
    assert home.create_home(tmp_path) == "" and mode(tmp_path) == 0o1777
    assert [finding.what for finding in doctor.secrets(tmp_path)] == ["home"]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to another account needs root")
def test_the_account_of_the_database_passes_through_the_home(tmp_path: Path) -> None:
    state.write(tmp_path, state.State())
    (tmp_path / "postgres").mkdir()
    os.chown(tmp_path / "postgres", 65534, 65534)
    tmp_path.chmod(0o710)
    assert home.create_home(tmp_path) == "" and mode(tmp_path) == 0o710
    tmp_path.chmod(0o755)
    assert home.create_home(tmp_path) and mode(tmp_path) == 0o710


def test_a_lock_that_is_held_is_named_with_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.1)
    lock = tmp_path / "stack.lock"
    lock.touch(0o644)
    holder = subprocess.Popen(["flock", "-x", str(lock), "sleep", "1.5"])
    try:
        with lock.open() as file:
            while locks.take(file):
                fcntl.flock(file, fcntl.LOCK_UN)
        with state.locked(tmp_path):
            pass
    finally:
        holder.wait()
    message = rf"rlhf: waiting for {re.escape(str(lock))}, which process {holder.pid} \(flock, of the user \S+\) holds"
    assert re.fullmatch(message, capsys.readouterr().err.strip())
    assert mode(lock) == 0o600  # and so no other account holds it again


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    (tmp_path / "stack.lock").symlink_to(tmp_path / "text")
    with pytest.raises(OSError, match="symbolic links"), state.locked(tmp_path):
        pass
    assert (tmp_path / "text").read_text() == "mine"


def test_a_directory_of_locks_that_another_account_could_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with exclusive_lock("a"):
        pass
    (directory,) = tmp_path.iterdir()
    assert mode(directory) == 0o700
    directory.chmod(0o777)
    with pytest.raises(LabelingError, match="this account alone can write to"), exclusive_lock("a"):
        pass
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabelingError, match="this account alone can write to"), exclusive_lock("a"):
        pass
