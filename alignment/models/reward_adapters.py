"""Reward and value models as LoRA adapters over a language model, and their files, in the format of `peft`."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError
from alignment.models.likelihood import load_likelihood, save_likelihood
from alignment.models.lora import NAME, adapter_weights, add_adapter, has_adapter, inject, merged, over_base, rebased
from alignment.models.safe_loading import NEVER_CODE
from alignment.models.scalar import load_scalar_model, save_model, scalar_model_over, set_normalisation

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BESIDE = "adapter"  # subfolder of a merged model for its adapter


def scalar_adapter_over(
    language_model: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int = 0
) -> PreTrainedModel:
    """A scalar model over the language model's weights, with a zero-initialized adapter and a zero head."""
    model = scalar_model_over(over_base(language_model))
    add_adapter(model, rank, alpha, targets, seed)
    return model


def save_scalar_adapter(model: PreTrainedModel, path: Path, base: str = "") -> None:
    """Write the adapter and the head as `peft` does, and the config with the normalisation; `base` names the base."""
    config = getattr(model, "peft_config", {}).get(NAME)
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{type(model).__name__} has no LoRA adapter: save it with save_model")
    saved = copy.deepcopy(config)
    saved.base_model_name_or_path, saved.task_type, saved.modules_to_save = base, "SEQ_CLS", ["score"]
    saved.inference_mode = True
    saved.save_pretrained(str(path))
    save_file({name: w.detach().contiguous() for name, w in _in_file(model).items()}, path / WEIGHTS_FILE)
    save_likelihood(model, path)
    model.config.save_pretrained(path)


def load_scalar_adapter(path: Path, language_model: PreTrainedModel) -> PreTrainedModel:
    """A reward or value adapter, saved here or by `peft`, over the weights of the language model it was trained on."""
    try:
        config = PeftConfig.from_pretrained(str(path))
        saved = load_file(path / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no LoRA adapter could be loaded from {path}: {error}") from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{path} has an adapter of type {config.peft_type}; only LoRA can share its base")
    model = scalar_model_over(over_base(language_model))
    config.modules_to_save = None  # the head, which is loaded below
    try:
        inject(model, config, 0)
    except ValueError as error:
        raise CheckpointError(f"the adapter in {path} does not fit {type(language_model).__name__}: {error}") from error
    expected = _in_file(model)
    if {n: w.shape for n, w in saved.items()} != {n: w.shape for n, w in expected.items()}:
        raise CheckpointError(f"the adapter in {path} does not fit {type(language_model).__name__}: was it its base?")
    for name, weight in expected.items():
        weight.data.copy_(saved[name])
    if (path / "config.json").exists():
        kept = AutoConfig.from_pretrained(path, **NEVER_CODE)
        set_normalisation(model, getattr(kept, "reward_bias", 0.0), getattr(kept, "reward_scale", 1.0))
    load_likelihood(model, path)
    shared = rebased(model, language_model)
    assert shared is not None, "the trunk is the language model's"
    return shared


def save_reward(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a reward model; one with an adapter is written as a plain merged model and as the adapter."""
    save_model(merged(model) if has_adapter(model) else model, path, tokenizer)
    if has_adapter(model):
        save_scalar_adapter(model, path / BESIDE)


def load_reward(
    path: Path, language_model: PreTrainedModel, dtype: torch.dtype = torch.float32, *, shared: bool = False
) -> PreTrainedModel:
    """A reward model: a plain model (in `dtype`), or an adapter over the weights of the language model.

    If `path` has both forms (`save_reward`), `shared` selects the adapter.
    """
    if (path / CONFIG_FILE).exists():
        return load_scalar_adapter(path, language_model)
    if shared and (path / BESIDE / CONFIG_FILE).exists():
        return load_scalar_adapter(path / BESIDE, language_model)
    return load_scalar_model(path, dtype)


def _in_file(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Adapter and head under `peft`'s names: with its wrapper's prefix, without the adapter's name."""
    weights = {name: w for name, w in adapter_weights(model).items() if not name.startswith("likelihood.")}
    return {"base_model.model." + name.replace(f".{NAME}.", "."): weight for name, weight in weights.items()}
