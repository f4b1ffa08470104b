"""Log-probabilities of responses: the one place that decides which logit speaks for which token.

A causal model's logits at position t-1 are its distribution over token t. Rollout, reference and update all read them
here, with the same sampling temperature, so that they can be compared. Rows are right-padded: prompt and response are
contiguous, positions are the natural 0, 1, 2, ..., and because attention is causal no real token ever sees the
padding, so no attention mask is needed. The output head runs on the positions that predict a response token alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from alignment.errors import CheckpointError


@dataclass(frozen=True)
class ScoringBatch:
    """b rows of at most t tokens, and the n response tokens among them, row by row and in order of time.

    Shapes: input_ids (b, t); all others (n,). `row` and `position` address the logits (or the value) that speak for a
    response token inside this batch; `sequence` and `time` address that token in tensors (sequences, response length).
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


def length_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group row numbers so that rows of like length meet and rows x longest stays within `token_budget`.

    Longest first, so that what does not fit in memory fails at once. A row above the budget is alone in its batch.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
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
    groups = length_batches([len(sequences[i]) for i in rows], token_budget)
    return [_scoring_batch(sequences, prompt_lengths, [rows[j] for j in group], device) for group in groups]


def _scoring_batch(
    sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], rows: list[int], device: torch.device | None
) -> ScoringBatch:
    lengths = torch.tensor([len(sequences[i]) - prompt_lengths[i] for i in rows])
    prompts = torch.tensor([prompt_lengths[i] for i in rows])
    assert int(prompts.min()) >= 1, "a token needs one before it to be predicted from"
    input_ids = right_pad([sequences[i] for i in rows])
    row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    time = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[row]
    position = prompts[row] + time - 1
    return ScoringBatch(
        input_ids=input_ids.to(device),
        row=row.to(device),
        position=position.to(device),
        targets=input_ids[row, position + 1].to(device),
        sequence=torch.tensor(rows)[row].to(device),
        time=time.to(device),
        real_tokens=sum(len(sequences[i]) for i in rows),
    )


def token_logits(model: PreTrainedModel, input_ids: Tensor, row: Tensor, position: Tensor, **inputs: Any) -> Any:
    """The model's output with logits (n, V) at the places (row, position) only, at least float32.

    A hook hands the output head those hidden states alone, so whatever the architecture does after its head (scaling,
    soft capping) still happens, and the logits of all positions, (b, t, V), never exist.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise CheckpointError(f"{type(model).__name__} has no output head; load it with AutoModelForCausalLM")
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][row, position].unsqueeze(0),))
    try:
        output = model(input_ids=input_ids, **inputs)
    finally:
        hook.remove()
    output.logits = at_least_float32(output.logits.squeeze(0))
    return output


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision is not enough to compare log-probabilities; double stays double."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def response_logprobs(model: PreTrainedModel, batch: ScoringBatch, temperature: float = 1.0) -> Tensor:
    """log π(token) of each response token. Shape: (n,)."""
    logits = token_logits(model, batch.input_ids, batch.row, batch.position, use_cache=False).logits
    return -functional.cross_entropy(logits / temperature, batch.targets, reduction="none")


def response_logprobs_and_entropy(
    model: PreTrainedModel, batch: ScoringBatch, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π(token) and the entropy -Σ π log π of the distribution it was drawn from. Shapes: (n,), (n,)."""
    logits = token_logits(model, batch.input_ids, batch.row, batch.position, use_cache=False).logits
    logs = functional.log_softmax(logits / temperature, dim=-1)
    return logs.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)
