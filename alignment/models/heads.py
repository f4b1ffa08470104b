"""The output head of a language model by itself, applied to a few tokens at a time.

The logits of a batch are its largest tensor: 8,192 tokens over a vocabulary of 49,152 are 1.6 GB in float32, and a loss
holds three of that size. Here hidden states go through the head in chunks, and a backward recomputes the logits of each
chunk, so that at most LOGITS_AT_A_TIME values exist at once. Values and gradients are those of the whole tensor.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from alignment.footprint.model import LOGITS_AT_A_TIME


@dataclass(frozen=True)
class Head:
    """A function from hidden states (n, h) to logits (n, vocabulary)."""

    logits: Callable[[Tensor], Tensor]
    vocabulary: int

    @classmethod
    def linear(cls, layer: nn.Module) -> "Head":
        """A head that is a linear layer and nothing else."""
        weight = layer.weight
        assert isinstance(weight, Tensor), f"{type(layer).__name__} is no linear layer"
        return cls(layer, len(weight))


def exceeds_chunk(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the logits of so many tokens are more than one chunk. False for a model that is sharded over processes:
    its weights are whole inside its own forward only."""
    head = model.get_output_embeddings()
    whole = isinstance(head, nn.Module) and not any(isinstance(weight, DTensor) for weight in head.parameters())
    return whole and tokens * vocabulary(model) > LOGITS_AT_A_TIME


def vocabulary(model: PreTrainedModel) -> int:
    """The number of logits of a token."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def trunk_states(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The hidden states that the model computes logits from. Shapes: (b, t) -> (b, t, h)."""
    hidden: Tensor = model.get_decoder()(input_ids=input_ids, use_cache=False)[0]
    return hidden


def head_of(model: PreTrainedModel) -> Head:
    """What the model does to the hidden states of its trunk.

    It is the forward of the model itself, over a trunk that returns these states: scaling and soft capping happen as
    the architecture does them. The model is not changed, so threads can use it at the same time.
    """
    trunk = model.get_decoder()
    name = next(name for name, module in model.named_modules() if module is trunk)
    position = torch.zeros(1, 1, dtype=torch.long, device=model.device)

    def logits(hidden: Tensor) -> Tensor:
        shell = _with_trunk(model, name.split("."), _StillTrunk(trunk, hidden.unsqueeze(0)))
        output: Tensor = shell(input_ids=position, use_cache=False).logits
        return output.squeeze(0)

    return Head(logits, vocabulary(model))


class _StillTrunk(nn.Module):
    """A trunk that has already computed its hidden states; any other attribute is that of the real one."""

    def __init__(self, trunk: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.__dict__["real"], self.__dict__["hidden"] = trunk, hidden

    def forward(self, *_: object, **__: object) -> "_Output":
        return _Output(last_hidden_state=self.hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["real"], name)


class _Output(BaseModelOutputWithPast):
    """Hidden states alone; caches and whatever else an architecture returns are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _with_trunk(module: nn.Module, names: list[str], trunk: nn.Module) -> nn.Module:
    """A copy of a module that shares everything but the trunk of this name."""
    first, *rest = names
    shell = copy.copy(module)
    inner = trunk if not rest else _with_trunk(module.get_submodule(first), rest, trunk)
    shell.__dict__["_modules"] = {**module._modules, first: inner}
    return shell


def log_likelihoods(head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(target) for each hidden state. Shapes: (n, h), (n,) -> (n,)."""

    def of_chunk(states: Tensor, tokens: Tensor) -> Tensor:
        logits = at_least_float32(head.logits(states)) / temperature
        return -functional.cross_entropy(logits, tokens, reduction="none")

    return in_chunks(head, of_chunk, hidden, targets)


def log_likelihoods_and_entropies(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float, learn_entropy: bool
) -> tuple[Tensor, Tensor]:
    """log p(target), and the entropy of the distribution, for each hidden state. Shapes: (n, h), (n,) -> (n,), (n,)."""

    def of_chunk(states: Tensor, tokens: Tensor) -> Tensor:
        return torch.stack(logprobs_and_entropy(head.logits(states), tokens, temperature, learn_entropy), dim=-1)

    logprobs, entropies = in_chunks(head, of_chunk, hidden, targets).unbind(-1)
    return logprobs, entropies


def logprobs_and_entropy(
    logits: Tensor, targets: Tensor, temperature: float, learn_entropy: bool
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy -Σ p log p. Entropy that is only logged (`learn_entropy=False`) has no gradient,
    which saves three tensors of the size of the logits. Shapes: (n, V), (n,) -> (n,), (n,)."""
    logs = functional.log_softmax(at_least_float32(logits) / temperature, dim=-1)
    with torch.set_grad_enabled(learn_entropy and torch.is_grad_enabled()):
        entropy = -(logs.exp() * logs).sum(-1)
    return logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def in_chunks(head: Head, of_chunk: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """`of_chunk(hidden, targets)` in chunks of tokens; a backward recomputes each chunk."""
    size = max(1, LOGITS_AT_A_TIME // head.vocabulary)
    if len(hidden) <= size:
        return of_chunk(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([of_chunk(*part) for part in parts])
    return torch.cat([checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast to float32, as half precision is not enough to compare log-probabilities; float64 stays float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
