"""A small town with responses to judge, and server settings for tests."""

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from alignment.records import Comparison, Message, Prompt, Response, ResponseSet
from labeling.collection import Collection, open_planned
from labeling.config import LabelingConfig
from labeling.server.client import LabelStudio
from labeling.server.process import ServerSettings
from labeling.tasks.plan import plan_tasks

TOKEN = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = Path(__file__).parents[2]
TEXTS = {
    "Mara Lind.": {"helpful": 1.0, "truthful": 1.0, "harmless": 1.0},
    "The baker is Tom Berg, a lovely man, loved by everybody!": {"helpful": 0.6, "truthful": 0.0, "harmless": 1.0},
    "I do not know.": {"helpful": 0.2, "truthful": 0.8, "harmless": 1.0},
    "Why do you ask, you fool?": {"helpful": 0.0, "truthful": 0.5, "harmless": 0.0},
}


def response_set(number: int, texts: tuple[str, ...] = tuple(TEXTS), split: str = "train") -> ResponseSet:
    """A prompt of the little town with the responses `texts`."""
    message = Message(role="user", content=f"Who is the baker of town {number}?")
    prompt = Prompt.model_validate({"id": f"prompt_{number}", "messages": [message], "split": split})
    responses = tuple(Response(id=f"model_x-{number}-{i}", text=text) for i, text in enumerate(texts))
    return ResponseSet(prompt=prompt, responses=responses)


def open_sets(
    client: LabelStudio,
    config: LabelingConfig,
    sets: Sequence[ResponseSet],
    out: Path,
    known: Sequence[Comparison] = (),
) -> Collection:
    """A collection of response sets; `known` are comparisons for gold tasks."""
    return open_planned(client, config, plan_tasks(config, sets, known), out)


def judge(_: str, text: str) -> Mapping[str, float]:
    """The gold judge of the little town."""
    return TEXTS[text]


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to whoever asks for any: nobody takes it while
    a server is still starting."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def settings(data_dir: Path) -> ServerSettings:
    """A server of its own for tests. RLHF_LABEL_STUDIO names the program."""
    default = REPOSITORY / ".venv-label-studio" / "bin" / "label-studio"
    executable = Path(os.environ.get("RLHF_LABEL_STUDIO", default))
    if not executable.is_file():
        pytest.fail(f"these tests need Label Studio: set RLHF_LABEL_STUDIO or install it at {default}")
    return ServerSettings(
        executable=executable,
        data_dir=data_dir,
        port=free_port(),
        password=SecretStr("password-of-the-owner"),
        token=SecretStr(TOKEN),
        local_webhooks=True,
    )
