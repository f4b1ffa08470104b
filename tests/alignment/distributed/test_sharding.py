"""Pretraining, SFT and reward model in two processes with sharded models: what one process makes.

`tests/flows/pipeline/test_accelerate.py` does it as the pipeline does, with PPO, and takes minutes.
"""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from alignment.config.stages import ComputeConfig, PretrainConfig, RewardConfig, SFTConfig
from alignment.distributed import devices, sharding
from alignment.distributed.collectives import on_main
from alignment.journal import Journal, read_metrics
from alignment.models.chat import ChatFormat
from alignment.models.scalar import load_causal_model, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.records import Document
from alignment.reward_model.train import group_by_prompt, train_groups, untrained
from alignment.training import trl
from alignment.training.pretrain import packed, train_packed
from alignment.training.sft import finetune
from alignment.worker import ReadOnlyJournal
from tests.alignment.tiny_world import LINES, comparison, demonstration, encoded, make_base, write

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit the threads of whatever ran before
TOLERANCE = 2e-5
Work = Callable[[Path, Path], None]


class Killed(BaseException):
    """What ends a run between two checkpoints."""


class KilledInStep3(Journal):
    """A journal with which a run ends in its third step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == 3:
            raise Killed
        super().log(values, step)


def pretrained(base: Path, out: Path, journal: Journal | None = None) -> None:
    """Batches of five rows and of one, which leaves a process without a row."""
    model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
    documents = [Document(text=line) for line in LINES * 2]
    text = packed([(text, ChatFormat.of(tokenizer).document(text)) for text in documents], 32, Path("text"))
    config = PretrainConfig(epochs=2, batch_sequences=5, log_every_steps=1, checkpoint_every_steps=1)
    assert len(text.rows) == 6
    trained = train_packed(model, text, text, config, out, journal or Journal(out), 0)
    on_main(save_model, trained, out / "model")


def rewarded(base: Path, out: Path) -> None:
    """Four prompts in batches of three and one, with all terms of the loss."""
    model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
    groups = group_by_prompt(encoded(tokenizer, [comparison(f"Who {n}?", LINES[n], LINES[4]) for n in range(4)]))
    config = RewardConfig(epochs=2, batch_prompts=3, log_every_steps=1, likelihood=True, lm_coef=0.2)
    reward, head = untrained(model, config, 1)
    on_main(save_model, train_groups(reward, head, groups, config, out, Journal(out), 0), out / "model")


def finetuned(base: Path, out: Path) -> None:
    """Five demonstrations in batches of four and one, by TRL's trainer."""
    config = SFTConfig(epochs=2, batch_size=4, max_length_tokens=64, log_every_steps=1)
    finetune(config, out, Journal(out), seed=0, base=base, demonstrations=base / "demonstrations")


def finetuned_in_bfloat16(base: Path, out: Path) -> None:
    with (
        mock.patch.object(devices, "has_bfloat16", return_value=True),  # emulated where the processor has none
        devices.computing(ComputeConfig(device="cpu", precision="bfloat16")),
    ):
        finetuned(base, out)


def process(rank: int, port: int, base: Path, out: Path, names: list[str]) -> None:
    """One of the two processes: the works in turn, with sharded models."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FSDP_VERSION": "2"}
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)
    assert sharding.enabled()
    if rank == 1:
        globals()["Journal"] = ReadOnlyJournal
    shards = []

    def prepare(model: nn.Module) -> None:
        shards.extend(weight for weight in model.parameters() if isinstance(weight, DTensor))
        sharding.sum_without_nccl(model)

    with mock.patch.object(trl, "sum_without_nccl", prepare):
        for name in names:
            AcceleratorState._reset_state()  # a stage has its processes for itself
            sharding.shard_trainers_on_cpu()
            WORKS[name](base, out / name)
    assert shards, "the trainer's model is not sharded"
    state.destroy_process_group()


WORKS: dict[str, Work] = {
    "pretrained": pretrained,
    "rewarded": rewarded,
    "resumed": pretrained,
    "finetuned": finetuned,
    "bfloat16": finetuned_in_bfloat16,
}


def in_two_processes(base: Path, out: Path, names: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [SPAWN.Process(target=process, args=(rank, port, base, out, names)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process makes, and what two make."""
    base, one, two = (tmp_path_factory.mktemp(name) for name in ("base", "one", "two"))
    make_base(base)
    answers = [demonstration(f"What is {line[:3]}?", line) for line in LINES]
    write(base / "demonstrations" / "demonstrations.jsonl", answers)
    for name, work in WORKS.items():
        work(base, one / name)
    with pytest.raises(Killed):
        pretrained(base, two / "resumed", KilledInStep3(two / "resumed"))  # two processes go on
    in_two_processes(base, two, list(WORKS))
    return one, two


@pytest.mark.parametrize("name", WORKS)
def test_sharded_models_learn_what_whole_ones_do(made: tuple[Path, Path], name: str) -> None:
    one, two = (directory / name for directory in made)
    tolerance = 1e-2 if name == "bfloat16" else TOLERANCE
    logs = [read_metrics(directory / "metrics.jsonl") for directory in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 3
    for here, there in zip(*logs, strict=True):
        assert there["step"] == here["step"]
        assert there["values"] == pytest.approx(here["values"], rel=tolerance, abs=tolerance)
    assert json.loads((two / "model" / "config.json").read_text()) == json.loads(
        (one / "model" / "config.json").read_text()
    )
    weights = [load_file(directory / "model" / "model.safetensors") for directory in (one, two)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=tolerance)
