"""Checkpoints and tokenizers of a hub that is not available: an error with the next step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from alignment.data.data_sets import read_data_set
from alignment.errors import CheckpointError, ConfigError
from alignment.models.safe_loading import read_plainly
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import load_tokenizer

NAME = "nobody-at-all/no-such-model"
NEXT_STEP = rf"hf download {NAME} --local-dir DIRECTORY"
TELEMETRY = """
import huggingface_hub
from huggingface_hub.utils import _telemetry, send_telemetry
import alignment.training.trl

send_telemetry("trl/SFTTrainer")
print(_telemetry._TELEMETRY_THREAD)
"""


@pytest.mark.parametrize("load", [load_tokenizer, load_causal_model])
def test_without_a_network_the_next_step_is_named(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:hunter22@hub.example:80/")
    assert callable(load)
    with pytest.raises(CheckpointError, match=NEXT_STEP) as caught:
        load(NAME)
    assert f"loaded from {NAME}: it is no directory here, and the hub (hub.example:80) did not" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    told = pytest.raises(CheckpointError, match=r"no tokenizer could be loaded from .*: install sentencepiece")
    with told, read_plainly("no tokenizer", tmp_path):
        raise ImportError("install sentencepiece")


def test_trainers_report_to_nobody_whoever_imported_the_hub_first() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", TELEMETRY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("None", 0), done.stderr


def test_credentials_in_the_hubs_address_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://u:s3cr3t@127.0.0.1:9")
    for load in (lambda: load_tokenizer("own/name"), lambda: list(read_data_set("own/name", "", "", ""))):
        with pytest.raises(ConfigError, match="HF_ENDPOINT contains credentials") as refused:
            load()
        assert "s3cr3t" not in str(refused.value)
