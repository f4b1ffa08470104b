"""A vLLM server that this run starts and ends. The command is in the environment, never in a recipe."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from alignment.errors import ConfigError, TrainingError

COMMAND = "RLHF_VLLM_COMMAND"
GRACE_SECONDS = 10.0
SHOWN_LINES = 20
SECRET = re.compile(r"TOKEN(_|$)|SECRET|PASS|CREDENTIAL|KEY|AUTH|COOKIE|DSN|(^|_)(PAT|PW)(_|$)|_PWD$", re.IGNORECASE)
CREDENTIALS_IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


class ServerProcess:
    """A server in a session of its own, which the kernel kills when this process ends (on Linux)."""

    def __init__(self, command: str, model: Path, log_file: Path) -> None:
        self.log_file = log_file
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [word.format(model=model.resolve(), port=port) for word in shlex.split(command)]
        tether = [sys.executable, "-P", "-m", "alignment.distributed.parent_death", str(os.getpid())]
        with log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [*tether, *words],
                env=without_secrets(os.environ) | {"VLLM_SERVER_DEV_MODE": "1"},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float) -> None:
        """Wait until it answers. Raises TrainingError if it ends before, or after `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                raise TrainingError(f"the command in {COMMAND} ended with status {code}:\n{self._last_lines()}")
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        self.stop()
        raise TrainingError(
            f"the server that {COMMAND} starts did not answer {self.url}/health within {seconds:g} seconds: raise "
            f"ppo.rollout.patience_seconds, or read {self.log_file}. Its last lines:\n{self._last_lines()}"
        )

    def stop(self) -> None:
        """End the server and its children."""
        for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(seconds)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def _last_lines(self) -> str:
        return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:])


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for libraries and hardware, and vLLM's own; no tokens, keys and passwords of others."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("VLLM_") or not (SECRET.search(name) or CREDENTIALS_IN_ADDRESS.search(value))
    }


def command() -> str:
    """The command of the environment, or "". Raises ConfigError for one without {model} and {port}."""
    text = os.environ.get(COMMAND, "")
    missing = [name for name in ("{model}", "{port}") if text and name not in text]
    if missing:
        raise ConfigError(
            f"{COMMAND} is {text!r} and lacks {missing[0]}: write it as in "
            "'/opt/vllm/bin/vllm serve {model} --port {port} --logprobs-mode processed_logprobs'"
        )
    return text


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
