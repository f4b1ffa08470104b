"""Log-probabilities of responses: the single definition of which logit predicts which token.

A causal model's logits at position t-1 are its distribution over token t. Rollout, reference and update all use this
module, with the same sampling temperature, so that they can be compared. Rows are right-padded: prompt and response are
contiguous, positions are the natural 0, 1, 2, ..., and because attention is causal no real token attends to padding, so
no attention mask is needed. The output head runs only on the positions that predict a response token.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from alignment.errors import CheckpointError
from alignment.models.heads import (
    at_least_float32,
    exceeds_chunk,
    head_of,
    log_likelihoods,
    log_likelihoods_and_entropies,
    logprobs_and_entropy,
    trunk_states,
)

# Fixed cost of a batch, as a share of the token budget (dispatch, kernel launches, gradient accumulation).
BATCH_COST = 1 / 16


@dataclass(frozen=True)
class ScoringBatch:
    """b rows of at most t tokens, and the n response tokens that they predict, row by row and in order of time.

    The last token of a sequence predicts nothing and is omitted.

    Shapes: input_ids (b, t); all others (n,). `row` and `position` address the logits (or the value) that predict a
    response token within this batch; `sequence` and `time` address that token in tensors (sequences, response length).
    """

    input_ids: Tensor
    row: Tensor
    position: Tensor
    targets: Tensor
    sequence: Tensor
    time: Tensor
    real_tokens: int

    @property
    def padding_share(self) -> float:
        """Share of the b·t forwarded positions that hold no token."""
        return 1.0 - self.real_tokens / self.input_ids.numel()


def length_batches(lengths: Sequence[int], token_budget: int, rows: Sequence[int] | None = None) -> list[list[int]]:
    """Group items by similar length so that rows x longest stays within `token_budget`. An item is a row, or as many
    rows as `rows` says, of which the longest has the item's length.

    Of all partitions of the items sorted by length, that with the least work: padded tokens, plus BATCH_COST for each
    batch. Longest first, so that an out-of-memory error comes at once. An item above the budget is a batch by itself.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch_cost = BATCH_COST * token_budget
    least, start = [0.0], [0]  # of the first n items: their least work, and where their last batch begins
    before = list(accumulate((1 if rows is None else rows[i] for i in order), initial=0))  # rows of the first n items
    for end in range(1, len(order) + 1):
        work, begin = math.inf, end - 1
        for first in range(end - 1, -1, -1):
            padded = lengths[order[first]] * (before[end] - before[first])
            if padded > token_budget and first < end - 1:
                break
            if least[first] + padded < work:
                work, begin = least[first] + padded, first
        least.append(work + batch_cost)
        start.append(begin)
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.insert(0, order[start[end] : end])
        end = start[end]
    return batches


def right_pad(sequences: Sequence[Sequence[int]], pad_token_id: int = 0) -> Tensor:
    """(b, t) token ids with padding on the right."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[pad_token_id] * (longest - len(sequence))] for sequence in sequences])


def scoring_batches(
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    token_budget: int,
    device: torch.device | None = None,
    rows: Sequence[int] | None = None,
) -> list[ScoringBatch]:
    """Batches over `rows` (all by default) of prompt+response sequences; every prompt has at least one token."""
    rows = range(len(sequences)) if rows is None else rows
    groups = length_batches([len(sequences[i]) - 1 for i in rows], token_budget)
    return [_scoring_batch(sequences, prompt_lengths, [rows[j] for j in group], device) for group in groups]


def _scoring_batch(
    sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], rows: list[int], device: torch.device | None
) -> ScoringBatch:
    lengths = torch.tensor([len(sequences[i]) - prompt_lengths[i] for i in rows])
    prompts = torch.tensor([prompt_lengths[i] for i in rows])
    assert int(prompts.min()) >= 1, "a prompt needs at least one token to predict from"
    tokens = right_pad([sequences[i] for i in rows])
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    time = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[row]
    position = prompts[row] + time - 1
    return ScoringBatch(
        input_ids=tokens[:, : max(1, tokens.shape[1] - 1)].to(device),
        row=row.to(device),
        position=position.to(device),
        targets=tokens[row, position + 1].to(device),
        sequence=torch.tensor(rows)[row].to(device),
        time=time.to(device),
        real_tokens=sum(len(sequences[i]) - 1 for i in rows),
    )


def no_tokens(device: torch.device) -> ScoringBatch:
    """A batch without response tokens: every sum over its tokens is 0."""
    empty = torch.zeros(0, dtype=torch.long, device=device)
    return ScoringBatch(torch.zeros(1, 1, dtype=torch.long, device=device), empty, empty, empty, empty, empty, 0)


def token_logits(model: PreTrainedModel, input_ids: Tensor, row: Tensor, position: Tensor, **inputs: Any) -> Any:
    """The model's output with logits (n, V) at the positions (row, position) only, at least float32.

    A hook passes only those hidden states to the output head, so whatever the architecture does after it (scaling, soft
    capping) still happens, and the logits of all positions, (b, t, V), are never materialized.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise CheckpointError(f"{type(model).__name__} has no output head; load it with AutoModelForCausalLM")
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][row, position].unsqueeze(0),))
    try:
        with read_only_at(model, row, position):
            output = model(input_ids=input_ids, **inputs)
    finally:
        hook.remove()
    output.logits = at_least_float32(output.logits.squeeze(0))
    return output


def read_only_at(model: PreTrainedModel, row: Tensor, position: Tensor) -> AbstractContextManager[None]:
    """Forwards inside compute the last hidden states at (row, position) only; at other positions they are invalid.

    What follows the last block's attention is computed for each token independently: its feed-forward network runs on
    those positions only and returns zeros elsewhere. Models whose blocks have no `mlp` run unchanged.
    """
    mlp = _last_feed_forward(model)
    return nullcontext() if mlp is None else _narrowed(mlp, row, position)


def current_narrowing() -> AbstractContextManager[None]:
    """The `read_only_at` context that is active now, to be entered again when a backward recomputes the forward."""
    active = _active_positions.get()
    return nullcontext() if active is None else _narrowed(*active)


_active_positions: ContextVar[tuple[nn.Module, Tensor, Tensor] | None] = ContextVar("active_positions", default=None)


@contextmanager
def _narrowed(mlp: nn.Module, row: Tensor, position: Tensor) -> Iterator[None]:
    """Hooks that gather the tokens at these positions before `mlp`, and scatter its outputs back after it."""
    shape: list[torch.Size] = []

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape.append(inputs[0].shape)
        flat = row * inputs[0].shape[1] + position
        return tuple(tensor.flatten(0, 1).index_select(0, flat).unsqueeze(0) for tensor in inputs)

    def scatter(_: nn.Module, __: tuple[Tensor, ...], output: Any) -> Any:
        b, t, d = shape.pop()
        selected, *rest = output if isinstance(output, tuple) else (output,)
        full = selected.new_zeros(b * t, d).index_copy(0, row * t + position, selected.squeeze(0)).view(b, t, d)
        return (full, *rest) if isinstance(output, tuple) else full

    hooks = [mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)]
    before = _active_positions.set((mlp, row, position))
    try:
        yield
    finally:
        _active_positions.reset(before)
        for hook in hooks:
            hook.remove()


def _last_feed_forward(model: PreTrainedModel) -> nn.Module | None:
    """`mlp` of the last block, unless transformers' checkpointing would recompute it after the hooks are removed."""
    count = getattr(model.config, "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(stacks) != 1 or (model.is_activation_checkpointing and model.training):
        return None
    mlp = getattr(stacks[0][-1], "mlp", None)
    return mlp if isinstance(mlp, nn.Module) else None


def response_logprobs(model: PreTrainedModel, batch: ScoringBatch, temperature: float = 1.0) -> Tensor:
    """log π(token) of each response token. Shape: (n,)."""
    if exceeds_chunk(model, len(batch.targets)):
        return log_likelihoods(head_of(model), response_states(model, batch), batch.targets, temperature)
    logits = token_logits(model, batch.input_ids, batch.row, batch.position, use_cache=False).logits
    return -functional.cross_entropy(logits / temperature, batch.targets, reduction="none")


def response_logprobs_and_entropy(
    model: PreTrainedModel, batch: ScoringBatch, temperature: float = 1.0, learn_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """log π(token) and the entropy -Σ π log π of the distribution it was drawn from. Shapes: (n,), (n,).

    Entropy that is only logged (`learn_entropy=False`) carries no gradient, which saves memory.
    """
    if exceeds_chunk(model, len(batch.targets)):
        hidden = response_states(model, batch)
        return log_likelihoods_and_entropies(head_of(model), hidden, batch.targets, temperature, learn_entropy)
    logits = token_logits(model, batch.input_ids, batch.row, batch.position, use_cache=False).logits
    return logprobs_and_entropy(logits, batch.targets, temperature, learn_entropy)


def response_states(model: PreTrainedModel, batch: ScoringBatch) -> Tensor:
    """The hidden states from which each response token is predicted. Shape: (n, h)."""
    with read_only_at(model, batch.row, batch.position):
        return trunk_states(model, batch.input_ids)[batch.row, batch.position]
