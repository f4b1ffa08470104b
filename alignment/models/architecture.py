"""What is asked of an architecture: one answer, whatever its config calls it."""

import inspect
import math

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from alignment.errors import CheckpointError

CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
ATTENTION_CACHE, RECURRENT_CACHE = "past_key_values", "cache_params"
LONGEST_ROW = 2048  # of packed text: the logits of one row at a context of 131072 tokens are tens of gigabytes


def context_length(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """The most tokens of a sequence; None where the architecture has no limit (ALiBi, state-space models).

    Of a composite checkpoint (text beside vision) it is that of the language model. LongRoPE (Phi 3 with 128k) encodes
    positions in another way as soon as one row of a batch is above its original length: that is the context here, so
    that a response does not depend on its batch.
    """
    config = model if isinstance(model, PreTrainedConfig) else model.config
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    lengths = (original, *(getattr(text, name, None) for name in CONTEXT_NAMES))
    return next((int(length) for length in lengths if length), None)


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Raise CheckpointError if a token's logits depend on later tokens, as in an encoder.

    Two sequences are read that are the same in their first half: so must be the logits there.
    """
    half = min(8, context_length(model) or 8) // 2
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    first = torch.arange(half, device=model.device)
    tokens = torch.stack([torch.cat([first, first + half]), torch.cat([first, first])]) % vocabulary
    training = model.training
    logits = model.eval()(input_ids=tokens, use_cache=False).logits[:, :half].float()
    model.train(training)
    tolerance = 1e-3 if model.dtype.itemsize > 2 else 5e-2  # causal models differ by rounding, if at all
    if float((logits[0] - logits[1]).abs().max()) > tolerance * float(logits.std()):
        raise CheckpointError(
            f"{type(model).__name__} reads later tokens when it predicts one, as encoders do, so it cannot be trained "
            "to write: take a causal language model"
        )


def cache_argument(model: PreTrainedModel | type[PreTrainedModel]) -> str:
    """The argument of a model's forward that takes the cache. Raises CheckpointError for a model without one."""
    name_of_model = (model if isinstance(model, type) else type(model)).__name__
    arguments = inspect.signature(model.forward).parameters
    for name in (ATTENTION_CACHE, RECURRENT_CACHE):
        if name in arguments:
            return name
    raise CheckpointError(
        f"{name_of_model} takes none of transformers' caches, so no responses can be sampled from it here: take "
        "a checkpoint of another architecture (docs/models.md)"
    )


def longest_sequence(*models: PreTrainedModel) -> float:
    """The smallest context of these models in tokens, to compare lengths with; infinite where none has a limit."""
    return min(context_length(model) or math.inf for model in models)


def row_length(model: PreTrainedModel) -> int:
    """Tokens in a row of packed text: the model's context, at most `LONGEST_ROW`."""
    return int(min(longest_sequence(model), LONGEST_ROW))
