"""Faults of the machine: a home that cannot be used, damaged databases, too few descriptors. A sentence each."""

import errno
import itertools
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import requests

from alignment.artifacts import file_digest
from alignment.bounded import read_bounded
from alignment.errors import ConfigError
from flows import disk, failures
from flows.cli import main
from flows.disk import MachineFault
from flows.failures import StageStopped, explained
from flows.home import LONGEST_BYTES, home_directory
from flows.stack import credentials, outages, stack, state
from flows.stack.databases import DATABASES, check_database
from flows.stack.processes import NotReady, StackError
from flows.stack.services import Name
from labeling.errors import ServerUnavailable, StoreError
from tests.flows.faulty import until
from tests.labeling.helpers import REPOSITORY

COMMANDS = (["up"], ["label", "sync"], ["run", "town"])


def ended(home: Path, *command: str, shell: str = "", prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    run = [*prefix, sys.executable, "-m", "flows.cli.main", *command]
    if shell:
        run = ["bash", "-c", f'{shell}; exec "$@"', "bash", *run]
    told = os.environ | {"RLHF_HOME": str(home), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(run, env=told, cwd="/", capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_file_where_the_home_should_be(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").write_text("not a directory")
    done = ended(tmp_path / "file", *command)
    assert done.returncode == 2 and "is not a directory" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "not a directory"


def test_a_home_of_400_characters_opens_its_databases_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    home = tmp_path / ("a" * 200)
    home /= "b" * (LONGEST_BYTES - len(str(home)) - 1)
    assert home_directory(home) == home and len(str(home)) == LONGEST_BYTES
    path = home / DATABASES["label-studio"].file
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("PRAGMA journal_mode=DELETE; CREATE TABLE a (b); INSERT INTO a VALUES (1);")
    with pytest.raises(ConfigError, match="more than 450 bytes, with which SQLite cannot open"):
        home_directory(home.with_name(home.name + "c"))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="becoming another user needs root")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_home_that_another_user_owns(command: list[str]) -> None:
    home = Path("/tmp/rlhf-read-only") / "-".join(command)
    shutil.rmtree(home, ignore_errors=True)
    (home / "logs").mkdir(parents=True)
    home.parent.chmod(0o755)
    credentials.ensure(home)
    state.write(home, state.State())
    try:
        done = ended(home, *command, prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert str(home) in done.stderr and re.search("change (the|its) owner or mode", done.stderr)
    finally:
        shutil.rmtree(home)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_forty_descriptors_are_too_few(tmp_path: Path, command: list[str]) -> None:
    done = ended(tmp_path / "home", *command, shell="ulimit -n 40")
    assert done.returncode == 2 and done.stderr.strip().startswith("rlhf: a process may open 40 files"), done.stderr
    assert "ulimit -n 4096" in done.stderr


def test_a_low_limit_is_raised_where_the_system_allows_it(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        main.allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(main.OPEN_FILES, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- databases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATABASES)
def test_a_damaged_database_is_named_before_its_server_starts(tmp_path: Path, name: Name) -> None:
    path = tmp_path / DATABASES[name].file
    path.parent.mkdir()
    check_database(tmp_path, name)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"CREATE TABLE {DATABASES[name].table} (b);")
        database.executescript(f"INSERT INTO {DATABASES[name].table} VALUES (randomblob(50000));")
    check_database(tmp_path, name)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(StackError, match=rf"{path.name}, the database of .* is damaged .*rlhf restore"):
        check_database(tmp_path, name)
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(StackError, match="not a database"):
        check_database(tmp_path, name)
    assert path.read_bytes() == b"garbage" * 1000


@pytest.mark.parametrize("name", DATABASES)
def test_an_empty_database_and_another_programs_are_refused_before_any_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Name
) -> None:
    monkeypatch.setattr(stack, "_start", lambda *arguments: pytest.fail("a server was started"))
    path = tmp_path / DATABASES[name].file
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StackError, match=rf"{path.name}, the database of .* is empty, .*rlhf restore"):
        stack.up(tmp_path)
    assert path.stat().st_size == 0
    with closing(sqlite3.connect(path)) as database:
        database.executescript("PRAGMA journal_mode=WAL; CREATE TABLE alembic_version (a);")  # a first start was killed
    check_database(tmp_path, name)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE recipes_for_cakes (a);")
    with pytest.raises(StackError, match="is another program's or damaged"):
        stack.up(tmp_path)


# --- which error is shown ---------------------------------------------------------------------------------------------


def chain(*errors: BaseException) -> BaseException:
    """The last of these errors, each raised while the one before was handled."""
    for cause, error in itertools.pairwise(errors):
        error.__context__ = cause
    return errors[-1]


REQUEST = httpx.Request("POST", "http://127.0.0.1:4200/api/flow_runs/set_state")


def prefect_500() -> Exception:
    return httpx.HTTPStatusError("Server error '500'", request=REQUEST, response=httpx.Response(500))


def test_a_prefect_whose_database_is_busy_is_named_in_one_sentence() -> None:
    busy = httpx.HTTPStatusError("Service Unavailable", request=REQUEST, response=httpx.Response(503))
    message = r"because Prefect \(status 503\) did not answer after minutes"
    with pytest.raises(failures.RunStopped, match=message), failures.friendly_errors():
        raise chain(busy, ValueError("what follows"))
    assert failures.unreachable_server(prefect_500()) == ""


def test_what_follows_from_a_full_disk_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    stopped = StageStopped("stage 'sft' has no disk space left")
    assert explained(chain(stopped, prefect_500())) is stopped
    unreachable = requests.ConnectionError("MLflow")
    with pytest.raises(StageStopped) as shown, failures.friendly_errors():
        raise chain(unreachable, stopped, OSError(errno.ENOSPC, "No space left on device"))
    assert shown.value is stopped
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "stack.json"))
    told = str(explained(chain(full, prefect_500())))
    assert f"left on the disk of {tmp_path} " in told and "Free some space" in told and "are kept" in told
    assert explained(prefect_500()) is None and explained(ValueError("a bug")) is None
    group = BaseExceptionGroup("tasks", [full])
    assert "the disk is full" in str(explained(group))


@pytest.mark.parametrize("error", [prefect_500(), ServerUnavailable("http://ls", "timed out"), NotReady("it ended")])
def test_servers_are_not_blamed_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setattr(disk, "bytes_left", lambda path: 4096)
    told = explained(error)
    assert isinstance(told, MachineFault) and str(told).startswith("the disk is full: 4096 bytes are left")
    for other in (ConfigError("an option"), StackError("there is no stack"), StoreError("it is damaged")):
        assert explained(other) is other
    assert "cannot be used" in str(explained(chain(PermissionError(errno.EACCES, "denied", "/srv"), error)))
    assert explained(ValueError("a bug")) is None


def test_a_directory_without_permission_and_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    denied = explained(OSError(errno.EROFS, "Read-only file system", "/srv/rlhf/stack.lock"))
    assert "/srv/rlhf/stack.lock cannot be used" in str(denied) and "--home" in str(denied)
    files = explained(OSError(errno.EMFILE, "Too many open files"))
    assert "too many files are open" in str(files) and "ulimit -n 4096" in str(files)
    assert failures.causes(ValueError()).__next__().args == ()


def test_mlflow_is_not_waited_for_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [10**9]
    monkeypatch.setattr(disk, "bytes_left", lambda path: left[0])
    monkeypatch.setattr(outages, "DISK_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "10")
    with outages.watched_disk(tmp_path):
        for left[0], retries in ((0, "0"), (10**9, "10"), (0, "0")):
            until(lambda retries=retries: os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == retries)  # type: ignore[misc]
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "10"


LATE = """
import atexit, sys
from flows.cli import main
from flows.disk import MachineFault
def app():
    raise MachineFault("the disk is full")
atexit.register(print, "Server error 500", file=sys.stderr)
main.app, main.nearly_full = app, lambda path: True
main.main()
"""


def test_nothing_is_printed_after_the_line_that_names_the_disk(tmp_path: Path) -> None:
    told = os.environ | {"RLHF_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", LATE], env=told, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "rlhf: the disk is full\n")


def test_a_disk_that_cannot_be_written_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setattr(disk, "bytes_left", lambda path: 0)
    assert disk.nearly_full(tmp_path)
    monkeypatch.setattr(disk.os, "access", lambda path, mode: False)
    assert not disk.nearly_full(tmp_path)
    with pytest.raises(MachineFault, match=f"{tmp_path} cannot be used by the user .*it cannot be written"):
        disk.check_disk(tmp_path / "home")


def test_a_name_that_is_too_long_is_said_in_words(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300) / "rows.jsonl"
    assert "cannot be opened (File name too long)" in str(
        explained(OSError(errno.ENAMETOOLONG, "File name too long", str(long)))
    )
    for command in (("data", "check", str(long)), ("run", str(long), "--plan")):
        done = ended(tmp_path / "home", *command)
        assert done.returncode == 1 and done.stderr.startswith(f"rlhf: '{str(long)[:150]}"), done.stderr
        assert "cannot be looked up (File name too long)" in done.stderr


@pytest.mark.parametrize("character", "?#%")
def test_a_home_whose_path_means_something_else_in_an_address(tmp_path: Path, character: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"'{character}' in its path has a meaning of its own")):
        home_directory(tmp_path / f"what{character}" / "home")
    assert home_directory(tmp_path / 'it\'s an "é&;"')


@pytest.mark.skipif(not Path("/proc/version").is_file(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["/proc/version", "/proc/kmsg", "/proc/self/environ"])
def test_what_the_kernel_makes_is_no_file_of_rows(tmp_path: Path, name: str) -> None:
    link = tmp_path / "rows.jsonl"
    link.symlink_to(name)
    for read in (read_bounded, file_digest):
        with pytest.raises(
            OSError, match=r"what the kernel makes while it is read; save it to a file|Permission denied"
        ):
            read(link)
