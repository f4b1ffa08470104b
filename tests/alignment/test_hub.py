"""A hub that does not answer: one short question, then its cache, and an error with the address."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment import hub
from alignment.config.stages import RowSource
from alignment.data.readers import read_as, to_prompt
from alignment.errors import CheckpointError, DataError
from alignment.models.tokenizer import load_tokenizer

NAME = "nobody/has-this"
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["refuses", "is silent", "hangs up"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that does not answer, which the libraries ask."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param != "refuses":
            server.listen(64)
        if request.param == "hangs up":
            threading.Thread(target=_hang_up, args=(server,), daemon=True).start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://{host}")
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
        yield host


def _hang_up(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_a_data_set_of_a_hub_that_does_not_answer(address: str, caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    with caplog.at_level(logging.INFO, logger="alignment"), pytest.raises(DataError) as caught:
        read_as(RowSource(path=NAME), to_prompt, None)
    assert time.monotonic() - started < 8
    assert f"the hub ({address}) does not answer" in str(caught.value) and "--repo-type dataset" in str(caught.value)
    assert caplog.messages[0] == f"asking the hub ({address}) for {NAME}"
    assert not hub.constants.HF_HUB_OFFLINE


def test_a_tokenizer_of_a_hub_that_does_not_answer(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"{NAME} is no file .* the hub \({address}\) does not answer"):
        load_tokenizer(NAME)
    assert time.monotonic() - started < 8
    assert not hub.constants.HF_HUB_OFFLINE


def test_what_the_cache_has_is_read_without_the_hub(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with hub.hub_read(NAME, DataError):
        assert hub.constants.HF_HUB_OFFLINE
    assert "is read from its cache, if it is there" in caplog.text
    with pytest.raises(ZeroDivisionError), hub.hub_read(NAME, DataError):
        raise ZeroDivisionError  # has nothing to do with the hub


def test_the_command_names_the_hub_within_three_seconds(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        host = f"127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": f"http://{host}", "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "flows.cli.main", "data", "check", NAME, "--as", "prompts"]
        began = time.monotonic()
        with subprocess.Popen(
            command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None
            first, seconds = process.stderr.readline(), time.monotonic() - began
            rest = process.stderr.read()
        assert f"rlhf: reading {NAME} from the hub ({host})" in first, first + rest
        assert seconds < 6  # under load; the line itself is due after three
        assert f"the hub ({host}) does not answer" in rest and "Traceback" not in rest
        assert process.returncode == 1 and time.monotonic() - began < 60
