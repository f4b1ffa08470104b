"""What is asked of an architecture: one answer, whatever its config calls it."""

import math

from transformers import PreTrainedConfig, PreTrainedModel

CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
LONGEST_ROW = 2048  # of packed text: the logits of one row at a context of 131072 tokens are tens of gigabytes


def context_length(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """The most tokens of a sequence; None where the architecture has no limit (ALiBi, state-space models).

    Of a composite checkpoint (text beside vision) it is that of the language model.
    """
    config = model if isinstance(model, PreTrainedConfig) else model.config
    text = config.get_text_config(decoder=True)
    lengths = (getattr(text, name, None) for name in CONTEXT_NAMES)
    return next((int(length) for length in lengths if length), None)


def longest_sequence(*models: PreTrainedModel) -> float:
    """The smallest context of these models in tokens, to compare lengths with; infinite where none has a limit."""
    return min(context_length(model) or math.inf for model in models)


def row_length(model: PreTrainedModel) -> int:
    """Tokens in a row of packed text: the model's context, at most `LONGEST_ROW`."""
    return int(min(longest_sequence(model), LONGEST_ROW))
