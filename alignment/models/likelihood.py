"""The likelihood term of a reward model: the response's log-probabilities under its language head.

    r(x, y) = w · h_T + (1/|y|) Σ_t (c + u · h_t) log p(y_t | x, y_<t)

The first part is the usual scalar head at the last token. The second lets the score use the trunk's knowledge
as a language model: a calibrated one gives false statements a low probability (Kadavath et al. 2022, "Language Models
(Mostly) Know What They Know"), while a scalar head would have to learn each fact again from comparisons. The
weight of a token's likelihood is c + u · h_t, a function of the hidden state after it: the token that names a street
indicates whether a statement is true, the first token of a courtesy does not. c and u are learned from the comparisons
like any other weight, so people's judgements determine the value of likelihood. The mean over the response's tokens is
neutral to length. The language head is SFT's, and frozen.
"""

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.errors import CheckpointError
from alignment.models.finite import read_weights
from alignment.models.heads import Head, log_likelihoods

FILE = "likelihood.safetensors"


class LikelihoodHead(nn.Module):
    """A frozen language head, and the coefficient c + u · h_t of a token, which starts at 0."""

    def __init__(self, language_head: nn.Module) -> None:
        super().__init__()
        if not isinstance(language_head, nn.Linear):
            raise CheckpointError(
                f"a likelihood term needs a linear language head, not {type(language_head).__name__}: set "
                "`reward.likelihood: false`"
            )
        self.language_head = copy.deepcopy(language_head).requires_grad_(False)
        weight = language_head.weight
        kind = torch.promote_types(weight.dtype, torch.float32)
        self.coef = nn.Linear(language_head.in_features, 1, device=weight.device, dtype=kind)
        nn.init.zeros_(self.coef.weight)
        nn.init.zeros_(self.coef.bias)

    def forward(self, hidden: Tensor, input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor) -> Tensor:
        """Mean of the response's log-probabilities, each times its coefficient.

        Shapes: (b, t, h), (b, t), (b,), (b,) -> (b,).
        """
        predicted = torch.arange(1, input_ids.shape[1], device=input_ids.device)
        inside = (predicted >= prompt_lengths.unsqueeze(-1)) & (predicted < lengths.unsqueeze(-1))
        head = Head.linear(self.language_head)
        logprobs = log_likelihoods(head, hidden[:, :-1][inside], input_ids[:, 1:][inside]).float()
        with torch.autocast(hidden.device.type, enabled=False):
            coefs = self.coef(hidden[:, 1:][inside].to(self.coef.weight)).squeeze(-1).float()
        rows = inside.nonzero()[:, 0]
        totals = torch.zeros(len(input_ids), device=logprobs.device, dtype=logprobs.dtype)
        return totals.index_add(0, rows, coefs * logprobs) / inside.sum(-1).clamp(min=1)


def likelihood_head(model: nn.Module) -> LikelihoodHead | None:
    """The model's likelihood term, or None."""
    head = getattr(model, "likelihood", None)
    return head if isinstance(head, LikelihoodHead) else None


def add_likelihood(model: PreTrainedModel, language_head: nn.Module) -> None:
    """Add a likelihood term with zero coefficients to a reward model."""
    model.add_module("likelihood", LikelihoodHead(language_head))


def without_likelihood(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its likelihood term removed in place, as a value model needs none."""
    if likelihood_head(model) is not None:
        del model.likelihood
    return model


def save_likelihood(model: PreTrainedModel, path: Path) -> None:
    """Write the term, if there is one, beside the model's weights."""
    head = likelihood_head(model)
    if head is not None:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, path / FILE)


def load_likelihood(model: PreTrainedModel, path: Path) -> None:
    """Restore the term, if one was saved."""
    if not (path / FILE).exists():
        return
    state = read_weights(path / FILE)
    if state.get("language_head.weight", torch.empty(0)).dim() != 2:
        raise CheckpointError(f"{path / FILE} has no language head; train the reward model again")
    outputs, inputs = state["language_head.weight"].shape
    head = nn.Linear(inputs, outputs, bias="language_head.bias" in state, device=model.device, dtype=model.dtype)
    add_likelihood(model, head)
    try:
        model.get_submodule("likelihood").load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path / FILE} does not fit its model; train the reward model again: {error}") from error
