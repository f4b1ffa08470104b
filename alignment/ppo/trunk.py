"""Whether policy and value model share a network, which decides what is trained, sharded and forwarded together."""

from transformers import PreTrainedModel


def shares_trunk(policy: PreTrainedModel, value_model: PreTrainedModel) -> bool:
    """Whether the value model's head is on the policy's own trunk."""
    return value_model.base_model is policy.base_model
