"""Importing checkpoints for chat: a PAD token that is not EOS, and a chat template.

Weights are read from safetensors by `transformers`; remote code is never run.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError
from alignment.models.safe_loading import NEVER_CODE, read_plainly
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import ASSISTANT, CHAT_TEMPLATE, PAD, SYSTEM, USER


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory or the hub."""
    with read_plainly("no tokenizer", path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **NEVER_CODE)
    return tokenizer


def import_checkpoint(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """An imported model and tokenizer, ready for chat, and a description of each change to them.

    Raises CheckpointError if there is no EOS (a response could never end) or the vocabularies do not fit.
    """
    model, tokenizer = load_causal_model(path), load_tokenizer(path)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the tokenizer of {path} has no EOS token, so a response could never end; set `eos_token` in it"
        )
    rows = len(weight_of(model.get_input_embeddings()))
    if len(tokenizer) > rows:
        raise CheckpointError(f"the tokenizer of {path} has {len(tokenizer)} tokens but the model embeds only {rows}")
    changes, known = [], len(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        was = "missing" if tokenizer.pad_token_id is None else "the same as EOS"
        tokenizer.add_special_tokens({"pad_token": PAD})
        changes.append(f"PAD was {was}; {PAD} added")
    if not tokenizer.chat_template:
        tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, SYSTEM]})
        tokenizer.chat_template = CHAT_TEMPLATE
        changes.append(f"no chat template; turns are marked with {USER}, {ASSISTANT} and {SYSTEM}")
    grow_embeddings(model, known, len(tokenizer))
    align_special_tokens(model, tokenizer)
    return model, tokenizer, changes


@torch.no_grad()
def grow_embeddings(model: PreTrainedModel, known: int, size: int) -> None:
    """Give each new token, `known` to `size`, the mean of the known tokens' rows, and of their output biases.

    Its logit is then the mean of the known ones. Many checkpoints have spare rows above their vocabulary, which were
    never trained: a new token that falls on one is initialized as well.
    """
    if size > len(weight_of(model.get_input_embeddings())):
        model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            for weights in (weight_of(layer), getattr(layer, "bias", None)):
                if isinstance(weights, Tensor) and size > known:
                    weights[known:size] = weights[:known].mean(dim=0)


def weight_of(layer: nn.Module) -> Tensor:
    """The matrix of an embedding or of an output head."""
    weight = layer.weight
    assert isinstance(weight, Tensor), f"{type(layer).__name__} has no weight matrix"
    return weight


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's special tokens in the model's configs."""
    for config in (model.config, model.generation_config):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id
