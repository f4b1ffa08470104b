"""GGUF files, the format of llama.cpp: a model with its tokenizer, read by `transformers`, with plain weights then.

It needs the package `gguf` (extra `gguf`). A file holds tensors and plain values, and no code.
"""

import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.bounded import open_regular
from alignment.errors import CheckpointError
from alignment.models.safe_loading import NEVER_CODE

MAGIC, HEADER = b"GGUF", struct.Struct("<IQ")  # version, number of tensors


def load_model(path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of a GGUF file, with weights of `dtype`."""
    _check_layers(Path(path))
    with _alone(Path(path)) as directory:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=Path(path).name, dtype=dtype, output_loading_info=True, **NEVER_CODE
        )
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise CheckpointError(f"{path} has no weights for {', '.join(missing[:3])}, which would be random")
    _forget_quantization(model)
    return model


def _forget_quantization(model: PreTrainedModel) -> None:
    """The weights are plain ones now; as those of a quantized model they could be neither trained nor saved."""
    del model.config.quantization_config
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template."""
    with _alone(Path(path)) as directory:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, gguf_file=Path(path).name, **NEVER_CODE
        )
    return tokenizer


def load_config(path: Path) -> PretrainedConfig:
    """The architecture and the sizes of the model in a GGUF file, without its weights."""
    check_file(path)
    with _alone(path) as directory:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, gguf_file=path.name, **NEVER_CODE)
    return config


def count_parameters(path: Path) -> int:
    """The number of weights in a GGUF file, from its header."""
    from gguf import GGUFReader

    check_file(path)
    return sum(math.prod(map(int, tensor.shape)) for tensor in GGUFReader(path).tensors)


def _check_layers(path: Path) -> None:
    """Raise CheckpointError for more layers than tensors: the model would be built, for minutes, before that shows."""
    layers, tensors = load_config(path).get_text_config().num_hidden_layers, check_file(path)
    if layers > tensors:
        raise CheckpointError(f"{path} describes {layers} layers, but has {tensors} tensors: fetch it again")


def check_file(path: Path) -> int:
    """The number of tensors in a GGUF file.

    Raises CheckpointError for what is none, or has no tensors, and if the package that reads one is missing.
    """
    try:
        with open_regular(path) as file:
            start, counts = file.read(len(MAGIC)), file.read(HEADER.size)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if start != MAGIC:
        raise CheckpointError(f"{path} is no GGUF file, as its first bytes are {start!r}: fetch it again")
    if find_spec("gguf") is None:
        raise CheckpointError(f"{path} needs the package gguf: pip install 'rlhf-flows[gguf]'")
    tensors = int(HEADER.unpack(counts)[1]) if len(counts) == HEADER.size else 0
    if not tensors:
        raise CheckpointError(f"{path} has no tensors: fetch it again")
    return tensors


@contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A directory with this file alone: `transformers` would also read configs that lie beside it."""
    check_file(path)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / path.name).symlink_to(path.resolve())
        yield directory
