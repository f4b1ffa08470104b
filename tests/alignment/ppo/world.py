"""A world of 20 words for the trainer: a tokenizer, a tiny policy and rewards that count words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from alignment.models.scalar import scalar_head, scalar_model_from, set_normalisation
from alignment.ppo.config import PPOConfig

PAD, EOS, WORDS = 0, 1, 20
PROMPTS = [[3 + i % 15] * (1 + i % 4) for i in range(24)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w2 … w19, with PAD and EOS."""
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, WORDS)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def policy(seed: int = 0, **options) -> PreTrainedModel:
    """A random Llama of 30 thousand parameters."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    config = LlamaConfig(
        attention_dropout=0.5,  # must never act
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **{**sizes, **options},
    )
    return LlamaForCausalLM(config)


def reward_model(seed: int = 1) -> PreTrainedModel:
    """A random reward model with a normalisation."""
    model = scalar_model_from(policy(seed))
    nn.init.normal_(scalar_head(model).weight, generator=torch.Generator().manual_seed(seed))
    set_normalisation(model, 0.25, 2.0)
    return model


def count_w7(prompts: list[str], responses: list[str]) -> list[float]:
    """How often w7 stands in each response."""
    return [float(response.split().count("w7")) for response in responses]


def config(**options) -> PPOConfig:
    """Small and quick; every option can be replaced."""
    base = {
        "steps": 4,
        "batch_size": 16,
        "minibatch_size": 8,
        "micro_batch_tokens": 64,
        "max_new_tokens": 8,
        "generation_batch_size": 8,
        "policy_learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "snapshot_every_steps": 2,
        "checkpoint_every_steps": 1,
    }
    return PPOConfig(**{**base, **options})


def logged(out: Path) -> list[dict]:
    """The metrics of each step without those of time."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("seconds_", "episodes_per", "tokens_per")
    return [
        {"step": line["step"]} | {k: v for k, v in line["values"].items() if not k.startswith(timed)} for line in lines
    ]
