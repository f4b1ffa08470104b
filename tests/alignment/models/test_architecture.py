"""What is asked of an architecture, under the names that each gives it."""

import math
from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    RwkvConfig,
    T5Config,
    ViTConfig,
)

from alignment.errors import CheckpointError
from alignment.models.architecture import LONGEST_ROW, check_causal, context_length, longest_sequence, row_length
from alignment.models.scalar import check_config, check_context
from alignment.training.pretrain import rows_note
from tests.alignment.models.zoo import tiny

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
CONFIGS = {
    "llama": (LlamaConfig(max_position_embeddings=48), 48),
    "gpt2": (GPT2Config(n_positions=48), 48),
    "opt": (OPTConfig(max_position_embeddings=48), 48),
    "falcon": (FalconConfig(max_position_embeddings=48), 48),
    "rwkv": (RwkvConfig(context_length=48), 48),
    "mpt": (MptConfig(max_seq_len=48), 48),
    "gemma3": (Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=48)), 48),
    "phi3 with longrope": (
        Phi3Config(max_position_embeddings=96, original_max_position_embeddings=48, rope_scaling=LONGROPE),
        48,
    ),
    "bloom": (BloomConfig(), None),
    "mamba": (MambaConfig(), None),
    "t5": (T5Config(), None),
}


class Model:
    """A model of which only the config is asked."""

    def __init__(self, name: str) -> None:
        self.config = CONFIGS[name][0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_context_is_read_wherever_the_config_has_it(name) -> None:
    config, length = CONFIGS[name]
    assert context_length(config) == context_length(Model(name)) == length


def test_lengths_are_compared_with_the_smallest_context() -> None:
    assert longest_sequence(Model("bloom")) == math.inf
    assert longest_sequence(Model("bloom"), Model("llama")) == 48


def test_text_is_packed_into_rows_of_a_length_that_memory_bears() -> None:
    assert row_length(Model("llama")) == 48 and rows_note(Model("llama")) == []
    assert row_length(Model("bloom")) == LONGEST_ROW
    assert rows_note(Model("bloom")) == ["the model's context has no limit; text is packed into rows of 2048 tokens"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", ""),
        ("gemma3", ""),
        ("rwkv", "RwkvForCausalLM takes none of transformers' caches"),
        ("t5", "is an encoder-decoder"),
        ("mamba", "no sequence classification form of MambaForCausalLM"),
    ],
)
def test_a_config_shows_what_a_run_would_refuse(tmp_path: Path, name: str, words: str) -> None:
    CONFIGS[name][0].save_pretrained(tmp_path)
    if not words:
        check_config(tmp_path)
        return
    with pytest.raises(CheckpointError, match=words):
        check_config(tmp_path)


def test_a_config_of_no_language_model(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="none with the architecture of ViTConfig"):
        check_config(tmp_path)


def test_a_model_without_a_limit_takes_any_length() -> None:
    check_context(Model("mamba"), 10**6, "sft.max_length_tokens")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_encoders_are_told_from_causal_models(dtype) -> None:
    check_causal(tiny("llama").to(dtype).train())
    encoder = tiny("bert").to(dtype)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.mul_(4)  # a trained encoder depends on every token, one with small random weights hardly
    with pytest.raises(CheckpointError, match="BertLMHeadModel reads later tokens"):
        check_causal(encoder)


def test_the_check_leaves_the_model_in_its_mode() -> None:
    model = tiny("gpt2").train()
    check_causal(model)
    assert model.training
