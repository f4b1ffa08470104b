"""Tiny models in double precision, and mutated modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alignment.models.scalar import scalar_head, scalar_model_from


def tiny_llama(vocab_size: int = 3, seed: int = 0) -> PreTrainedModel:
    """A random Llama in float64, sharp enough that neighbouring positions differ clearly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).double().eval()


def tiny_value_model(policy: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """The trunk of the policy with a random head."""
    model = scalar_model_from(policy)
    nn.init.normal_(scalar_head(model).weight, generator=torch.Generator().manual_seed(seed))
    return model


def mutant(module: ModuleType, old: str, new: str) -> ModuleType:
    """The module with one place of its source changed."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    changed = ModuleType(f"mutant_of_{module.__name__.replace('.', '_')}")
    sys.modules[changed.__name__] = changed
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), changed.__dict__)
    return changed


def module(name: str) -> ModuleType:
    """A module of `alignment` by its name there."""
    return importlib.import_module(f"alignment.{name}")
