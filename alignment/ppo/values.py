"""Values before each response token, from a separate value model or from a head on the policy's trunk."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.models.logprobs import ScoringBatch, read_only_at, response_logprobs_and_entropy
from alignment.models.scalar import head_values, normalised


def response_values(value_model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """V before each response token, in units of the normalised score, at the position of its logits. Shape: (n,)."""
    with read_only_at(value_model, batch.row, batch.position):
        hidden = value_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return values_at(value_model, hidden[batch.row, batch.position])


def policy_and_values(
    policy: PreTrainedModel,
    value_model: PreTrainedModel,
    batch: ScoringBatch,
    temperature: float,
    learn_entropy: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(token), entropy and V before the token from a single forward of the shared trunk. Shapes: (n,) each."""
    hidden: list[Tensor] = []
    hook = policy.get_decoder().register_forward_hook(  # OPT does not call its base_model, but the decoder in it
        lambda _, __, output: hidden.append(output.last_hidden_state[batch.row, batch.position])
    )
    try:
        logprobs, entropy = response_logprobs_and_entropy(policy, batch, temperature, learn_entropy)
    finally:
        hook.remove()
    return logprobs, entropy, values_at(value_model, hidden[0])


def values_with_still_trunk(value_model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """V with gradients for the head only, and no graph of the trunk. Shape: (n,)."""
    with torch.no_grad():
        hidden = value_model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return values_at(value_model, hidden[batch.row, batch.position])


def values_at(value_model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """V for each hidden state of the trunk, in units of the normalised score. Shapes: (n, h) -> (n,)."""
    return normalised(value_model, head_values(value_model, hidden))
