"""Minimal stages for tests: they write a short text, or a model of a few thousand numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignment.artifacts import Artifact
from alignment.config.stages import ComputeConfig
from alignment.journal import Journal
from alignment.models.tokenizer import CHAT_TEMPLATE, EOS, PAD, USER
from alignment.stage import Stage, Step, Tokens
from alignment.stages import STAGES
from flows.tracking.runner import run_step

ROLES = ["<|assistant|>", "<|system|>"]


class Counted:
    """A stage that counts how often it works, and fails the first `failures` times after two of four steps."""

    def __init__(self, failures: int = 0, error: type[BaseException] = RuntimeError) -> None:
        self.calls, self.failures, self.error = 0, failures, error

    def __call__(self, out: Path, journal: Journal) -> Mapping[str, float]:
        self.calls += 1
        state = out / "checkpoint" / "step"
        done = int(state.read_text()) if state.exists() else 0
        for step in range(done + 1, 5):
            journal.log({"loss": 1.0 / step}, step)
            state.parent.mkdir(exist_ok=True)
            state.write_text(str(step))
            if step == 2 and self.calls <= self.failures:
                raise self.error("killed")
        (out / "text.txt").write_text("an output\n")
        return {"loss": 0.25, "not_measured": float("nan")}


def write_model(directory: Path, *, scores: bool = False) -> None:
    """A byte-level Llama of one layer with a tokenizer, as text model or as reward model."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([PAD, EOS, USER, *ROLES, *alphabet])}
    plain = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=PAD, eos_token=EOS)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config) if scores else LlamaForCausalLM(config)
    if scores:
        model.config.reward_bias, model.config.reward_scale = 0.5, 2.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def text_model(out: Path, journal: Journal) -> Mapping[str, float]:
    """A stage that makes a text model."""
    write_model(out / "model")
    journal.log({"loss": 2.0}, 1)
    return {"loss": 2.0}


def reward_model(out: Path, journal: Journal) -> Mapping[str, float]:
    """A stage that makes a reward model."""
    write_model(out / "model", scores=True)
    return {}


def run_stage(
    name: str,
    work: Callable[[Path, Journal], Mapping[str, float]],
    *,
    config: BaseModel,
    inputs: Mapping[str, Artifact] | None = None,
    files: Sequence[Path] = (),
    seed: int = 0,
    version: int = 1,
    model: str | None = None,
    parent: str | None = None,
    registry: str = "",
) -> Artifact:
    """`work` as the stage of this name, run as the pipeline runs stages."""
    inputs = dict(inputs or {})
    hints = {stage.name: stage.less_memory for stage in STAGES}
    stage = Stage(
        name,
        run=lambda _, out, journal, **__: work(out, journal),
        config=type(config),
        section=name,
        version=version,
        model=model,
        less_memory=hints.get(name, ""),
        cost=None if name in ("town", "corpus") else lambda *_: Tokens(),
    )
    compute = ComputeConfig(device="cpu", precision="float32")
    sources = {given: artifact.stage for given, artifact in inputs.items()}
    step = Step(stage, config, sources, tuple(files), seed, compute=compute, registry=registry)
    return run_step(step, inputs, parent=parent)
