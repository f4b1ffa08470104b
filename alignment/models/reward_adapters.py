"""Reward and value models as LoRA adapters over a language model, and their files, in the format of `peft`."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError
from alignment.models.checkpoint_files import read_config
from alignment.models.finite import read_weights
from alignment.models.likelihood import likelihood_head, load_likelihood, save_likelihood
from alignment.models.lora import NAME, adapter_weights, add_adapter, has_adapter, inject, merged, over_base, rebased
from alignment.models.quantized import before_quantization, is_quantized, merged_over
from alignment.models.scalar import (
    load_causal_model,
    load_scalar_model,
    read_normalisation,
    save_model,
    scalar_head,
    scalar_model_over,
    set_normalisation,
)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MODULE = re.compile(r"[\w.]+")
HIGHEST_RANK = 65_536
PLAIN_LORA: dict[str, object] = {  # options of peft that change the computation, with their usual values
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": [],
    "exclude_modules": [],
    "target_parameters": [],
}
BESIDE = "adapter"  # subfolder of a merged model for its adapter


def scalar_adapter_over(
    language_model: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int = 0
) -> PreTrainedModel:
    """A scalar model over the language model's weights, with a zero-initialized adapter and a zero head."""
    model = scalar_model_over(language_model if is_quantized(language_model) else over_base(language_model))
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
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).exists()]:
        raise CheckpointError(f"no LoRA adapter could be loaded from {path}: it has no {missing[0]}")
    config, saved = _lora_config(path / CONFIG_FILE), read_weights(path / WEIGHTS_FILE)
    ranks = {weight.shape[0] for name, weight in saved.items() if name.endswith("lora_A.weight") and weight.dim()}
    if ranks != {config.r}:
        raise CheckpointError(f"the adapter in {path} has rank {config.r}, but its weights have {sorted(ranks)}")
    model = scalar_model_over(over_base(language_model))
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
        set_normalisation(model, *read_normalisation(path, read_config(path / "config.json")))
    load_likelihood(model, path)
    shared = rebased(model, language_model)
    assert shared is not None, "the trunk is the language model's"
    return shared


def _lora_config(file: Path) -> LoraConfig:
    """The options of a LoRA adapter that shape its weights. Raises CheckpointError for an adapter of another kind.

    No other option is taken over: `base_model_name_or_path` names a base elsewhere, others make peft import modules,
    change the base's weights or match names by a pattern of the file's maker.
    """
    raw = read_config(file)
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file.parent} has an adapter of type {raw.get('peft_type')}; only LoRA can share its base"
        )
    if wrong := [name for name, usual in PLAIN_LORA.items() if (raw.get(name) or usual) != usual]:
        raise CheckpointError(
            f"{file} sets {wrong[0]} to {str(raw[wrong[0]])[:100]}: only plain LoRA can share its base"
        )
    rank, alpha, modules = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not 1 <= rank <= HIGHEST_RANK:
        raise CheckpointError(f"{file} has rank {rank!r} and lora_alpha {alpha!r}: fetch the adapter again")
    if not isinstance(modules, list) or not all(isinstance(name, str) and MODULE.fullmatch(name) for name in modules):
        raise CheckpointError(f"{file} has target_modules {str(modules)[:100]}: a list of names of layers is needed")
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=modules,
        fan_in_fan_out=raw.get("fan_in_fan_out") is True,
        use_rslora=raw.get("use_rslora") is True,
    )


def save_reward(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a reward model; one with an adapter is written as a plain merged model and as the adapter."""
    save_model(_plain(model), path, tokenizer)
    if has_adapter(model):
        save_scalar_adapter(model, path / BESIDE)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapter merged; over quantized weights, into those of the checkpoint they were read from."""
    if not is_quantized(model):
        return merged(model) if has_adapter(model) else model
    source = before_quantization(model)
    plain = merged_over(scalar_model_over(load_causal_model(source)), model)
    scalar_head(plain).load_state_dict(scalar_head(model).state_dict())
    set_normalisation(plain, *read_normalisation(source, vars(model.config)))
    term = likelihood_head(model)
    if term is not None:
        plain.add_module("likelihood", term)
    return plain


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
