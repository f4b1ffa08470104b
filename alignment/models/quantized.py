"""A frozen language model in 4 bits, the base of an adapter (QLoRA, Dettmers et al. 2023), by bitsandbytes.

The weights of linear layers are quantized to NF4 as they are loaded, with the scales of their blocks; the head, the
embeddings and the norms stay as they are. An adapter that was trained over them is added to the weights as they were
before, in float32: `merged_over`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from alignment.distributed.devices import device, frozen_dtype
from alignment.errors import ConfigError
from alignment.models.heads import at_least_float32
from alignment.models.lora import adapter_delta
from alignment.models.scalar import load_causal_model


def load_base(path: Path, lora_rank: int | None, quantize: str | None) -> PreTrainedModel:
    """The model that a stage trains, in float32; below an adapter in the precision of frozen models, or in 4 bits."""
    if quantize is None:
        return load_causal_model(path, torch.float32 if lora_rank is None else frozen_dtype())
    check_quantizing(device())
    half = torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half
    )
    return load_causal_model(path, quantization=config)


def check_quantizing(where: torch.device) -> None:
    """Raise ConfigError where a model cannot be quantized, or would only be slower."""
    if where.type != "cuda":
        raise ConfigError(
            f"quantize: nf4 computes on a GPU, and this process works on {where}: remove quantize, or set "
            "compute.device: cuda on a machine that has one"
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError("quantize: nf4 needs bitsandbytes: `pip install 'rlhf-flows[gpu]'`, or remove quantize")


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the model's linear layers are in 4 bits."""
    return any(weight.dtype == torch.uint8 for weight in model.parameters())


def before_quantization(model: PreTrainedModel) -> Path:
    """The checkpoint that the weights were read from."""
    assert model.name_or_path, "a quantized model was loaded from a checkpoint"
    return Path(model.name_or_path)


def merged_over(plain: PreTrainedModel, adapted: PreTrainedModel) -> PreTrainedModel:
    """`plain` with the deltas of the adapter of `adapted`, whose base has the same layers in another precision."""
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            linear: Any = plain.get_submodule(name)
            weight = at_least_float32(linear.weight.detach()) + adapter_delta(layer)
            linear.weight = nn.Parameter(weight, requires_grad=False)
    return plain
