"""Importing checkpoints for chat: a PAD token that is not EOS, a chat template, and every token that ends an answer.

Weights are read from safetensors by `transformers`; remote code is never run.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError
from alignment.models.chat import ChatFormat, configured_eos_ids
from alignment.models.checkpoint_files import is_gguf
from alignment.models.scalar import load_causal_model
from alignment.models.tokenizer import ASSISTANT, CHAT_TEMPLATE, PAD, SYSTEM, USER, load_tokenizer


def import_checkpoint(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """An imported model and tokenizer, ready for chat, a description of each change to them, and what of the chat
    template cannot be honoured.

    Raises CheckpointError if nothing could end a response, if the vocabularies do not fit, and for a chat template
    that cannot render a question with its answer.
    """
    model, tokenizer = load_causal_model(path), load_tokenizer(path)
    rows = len(weight_of(model.get_input_embeddings()))
    if len(tokenizer) > rows:
        raise CheckpointError(f"the tokenizer of {path} has {len(tokenizer)} tokens but the model embeds only {rows}")
    changes = ["the weights of a GGUF file, dequantized to float32"] if is_gguf(path) else []
    known = len(tokenizer)
    if not tokenizer.chat_template:
        tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, SYSTEM]})
        tokenizer.chat_template = CHAT_TEMPLATE
        changes.append(f"no chat template; turns are marked with {USER}, {ASSISTANT} and {SYSTEM}")
    changes += ensure_eos(tokenizer, model, path)
    chat = ChatFormat.of(tokenizer, model.generation_config)
    if max(chat.end_ids) >= max(rows, len(tokenizer)):
        raise CheckpointError(f"{path} calls token {max(chat.end_ids)} an EOS, but its model has {rows} tokens only")
    changes += ensure_pad(tokenizer, chat)
    grow_embeddings(model, known, len(tokenizer))
    changes += align_special_tokens(model, chat)
    return model, tokenizer, [*changes, *chat.notes()]


def ensure_eos(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str | Path) -> list[str]:
    """Give a tokenizer without EOS the one that the checkpoint names. Raises CheckpointError if it names none."""
    if tokenizer.eos_token_id is not None:
        return []
    named = configured_eos_ids(model.generation_config)
    if not named:
        raise CheckpointError(
            f"the tokenizer of {path} has no EOS token, so a response could never end; set `eos_token` in it"
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(named[0])
    return [f"the tokenizer had no EOS; it is {tokenizer.eos_token}, as the checkpoint says"]


def ensure_pad(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> list[str]:
    """Add a PAD to a tokenizer without one, or whose PAD ends answers."""
    pad = tokenizer.pad_token_id
    if pad is not None and pad not in (tokenizer.eos_token_id, chat.end_of_turn):
        return []
    reason = "missing" if pad is None else "the same as EOS" if pad == tokenizer.eos_token_id else "the end of a turn"
    tokenizer.add_special_tokens({"pad_token": PAD})
    return [f"PAD was {reason}; {PAD} added"]


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


def align_special_tokens(model: PreTrainedModel, chat: ChatFormat) -> list[str]:
    """Set PAD and the ids that end an answer in the model's configs; describes a change of the latter."""
    ends, before = sorted(chat.end_ids), configured_eos_ids(model.generation_config)
    for config in (model.config.get_text_config(), model.generation_config):
        if config is not None:
            config.pad_token_id = chat.tokenizer.pad_token_id
            config.eos_token_id = ends if len(ends) > 1 else ends[0]
    if before == ends:
        return []
    names = " or ".join(map(str, chat.tokenizer.convert_ids_to_tokens(ends)))
    return [f"an answer ends at {names}, as chat template, generation config and tokenizer together say"]
