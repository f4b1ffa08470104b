"""Starting and stopping a server, with small programs in its place."""

import os
import socket
import stat
import sys
import time
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr, ValidationError

from labeling.errors import ServerStartFailed
from labeling.server.process import GUARD, ServerSettings, command, environment, running_server, start, stop
from tests.labeling.helpers import TOKEN, free_port


def pretend(tmp_path: Path, script: str, port: int = 0) -> ServerSettings:
    """Settings with a shell script as the server."""
    program = tmp_path / "label-studio"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return ServerSettings(
        executable=program,
        data_dir=tmp_path / "data",
        port=port or free_port(),
        password=SecretStr("long enough"),
        token=SecretStr(TOKEN),
    )


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    settings = pretend(tmp_path, "echo 'no module named foo'; exit 3\n")
    seen = r"(?s)exited with code 3.*no module named foo"
    with pytest.raises(ServerStartFailed, match=seen), running_server(settings):
        pass


def test_a_busy_port_is_an_error_and_not_another_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerStartFailed, match="is in use"):
            start(pretend(tmp_path, "sleep 60\n", taken.getsockname()[1]))


def test_a_missing_program_and_a_littered_directory_are_named(tmp_path: Path) -> None:
    settings = pretend(tmp_path, "sleep 60\n")
    settings.working_dir.mkdir(parents=True)
    (settings.working_dir / "core.py").touch()
    with pytest.raises(ServerStartFailed, match="must be empty"):
        start(settings)
    with pytest.raises(ServerStartFailed, match="no Label Studio at"):
        start(settings.model_copy(update={"executable": tmp_path / "nowhere"}))


def test_children_go_with_the_server_even_if_it_will_not(tmp_path: Path) -> None:
    settings = pretend(tmp_path, 'trap "" TERM\nsleep 300 &\necho $!\nwait\nwait\n')
    process = start(settings)
    while not (said := settings.log_path.read_text().split()):
        time.sleep(0.01)
    stop(process, seconds=0.3)
    assert process.returncode is not None
    deadline = time.monotonic() + 60
    while lives(int(said[0])):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_the_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_USERNAME", "somebody@else")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    settings = pretend(tmp_path, "")
    told = environment(settings)
    assert told["LABEL_STUDIO_USERNAME"] == settings.username and told["LABEL_STUDIO_USER_TOKEN"] == TOKEN
    assert "PYTHONPATH" not in told and told["PATH"] == os.environ["PATH"]
    assert told["LABEL_STUDIO_COLLECT_ANALYTICS"] == "false" and told["SENTRY_DSN"] == ""
    line = command(settings)
    assert line[line.index("--port") + 1] == str(settings.port)
    secrets = {TOKEN, settings.password.get_secret_value()}
    assert secrets <= set(told.values()) and not secrets & set(line)  # anybody on this machine can read the line


def test_a_token_of_another_kind_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="40 lower-case hexadecimal digits"):
        ServerSettings(
            executable=tmp_path, data_dir=tmp_path, port=1, password=SecretStr("x" * 8), token=SecretStr("secret")
        )


def test_the_script_of_the_pages_is_at_the_end_of_the_body_only() -> None:
    sys.path.insert(0, str(GUARD))
    try:
        from rlhf_pages import SCRIPT, with_script  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(GUARD))
    assert SCRIPT.is_file()
    assert with_script(b"<body>a</body></html>", b"<script>") == b"<body>a<script></body></html>"
    assert with_script(b"no page", b"<script>") == b"no page"
