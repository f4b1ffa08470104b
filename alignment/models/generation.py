"""Batched generation with a KV cache: left-padded prompts of similar length, rows that are removed when they end."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, StaticCache

from alignment.errors import ConfigError
from alignment.models.architecture import ATTENTION_CACHE, cache_argument, context_length
from alignment.models.cache import spare_cache
from alignment.models.heads import at_least_float32
from alignment.models.logprobs import token_logits
from alignment.models.static_decoding import StaticStep, decodes_in_graphs, static_cache

# Ended rows are removed once they are this share of the batch: selecting rows copies the cache.
ENDED_SHARE_TO_DROP = 0.125
# A graph is recorded again when rows are removed, and asking a GPU which have ended makes it wait.
ENDED_SHARE_IN_GRAPHS, TOKENS_BETWEEN_QUESTIONS = 0.5, 8
BLOCK = 256  # of a large vocabulary, whose tokens are searched in two steps


@dataclass
class Sample:
    """A sampled response: its tokens (including a final EOS), their log-probabilities and whether it ended."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    batch_size: int = 128,
) -> list[Sample]:
    """Sample one response for each prompt of token ids, in the order of the prompts.

    `temperature=0` takes the most likely token. `logprobs` are those of the whole distribution at this temperature (at
    1 where greedy); `top_p` restricts sampling but not `logprobs`. The same generator state gives the same
    samples for the same prompts and batch size. `generator` lives on the model's device.

    `uniforms`, numbers in [0, 1) of shape (prompts, max_new_tokens), replace the generator: token t of prompt i is a
    function of number (i, t) alone, so that a response does not depend on its batch or the device (except for a number
    so near to the boundary of two tokens that rounding decides).
    """
    _check(model, prompts, max_new_tokens, temperature, top_p)
    assert uniforms is None or uniforms.shape == (len(prompts), max_new_tokens), uniforms.shape
    samples: dict[int, Sample] = {}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    ends = torch.tensor(sorted(eos_token_ids), dtype=torch.long, device=model.device)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        numbers = None if uniforms is None else uniforms[rows].to(model.device)
        batch = _Batch(model, [prompts[i] for i in rows], max_new_tokens, ends, pad_token_id, numbers)
        for time in range(max_new_tokens):
            column = None if batch.uniforms is None else batch.uniforms[:, time]
            tokens, logprobs = draw(batch.logits, temperature, top_p, generator, column)
            if not batch.advance(tokens, logprobs, time):
                break
        samples.update(zip(rows, batch.samples(), strict=True))
    return [samples[i] for i in range(len(prompts))]


def draw(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None, uniforms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability. Shapes: (b, V), uniforms (b,) -> (b,), (b,)."""
    scaled = logits if temperature in (0, 1) else logits / temperature
    logs = functional.log_softmax(scaled, dim=-1)
    if temperature == 0:
        tokens = logs.argmax(-1, keepdim=True)
    elif uniforms is None:
        tokens = torch.multinomial(nucleus(logs.exp(), top_p), 1, generator=generator)
    else:
        tokens = quantile(nucleus(logs.exp(), top_p), uniforms).unsqueeze(-1)
    return tokens.squeeze(-1), logs.gather(-1, tokens).squeeze(-1)


def quantile(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform sampling: the first token i with Σ_{j≤i} w_j > u Σ_j w_j (Devroye 1986, III.2.1).

    Sums are in double precision: in single precision, tokens late in a large vocabulary would be lost to rounding. In
    a large vocabulary the block of tokens is found first, and then the token in it: a sum is ten times as fast as a
    cumulative one.
    Shapes: weights (b, V), not normalised; uniforms (b,) in [0, 1) -> (b,).
    """
    if weights.shape[-1] < 16 * BLOCK:
        return _first_above(weights.cumsum(-1, dtype=torch.float64), uniforms)
    blocks = functional.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    block = _first_above(ends, uniforms).unsqueeze(-1)
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).cumsum(-1, dtype=torch.float64)
    rest = (uniforms.to(ends).unsqueeze(-1) * ends[:, -1:] - start) / inside[:, -1:]
    token = _first_above(inside, rest.squeeze(-1).clamp(0, 1 - 2**-53))  # rounding may put it outside the block
    return block.squeeze(-1) * BLOCK + token


def _first_above(cumulative: Tensor, shares: Tensor) -> Tensor:
    """The first i with c_i > share · c_last. Shapes: (b, n), (b,) -> (b,)."""
    indices = torch.searchsorted(cumulative, shares.to(cumulative).unsqueeze(-1) * cumulative[:, -1:], right=True)
    return indices.squeeze(-1).clamp(max=cumulative.shape[-1] - 1)  # only NaN exceeds it, which the update reports


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens that holds `top_p` of the mass (Holtzman 2020). Shape: (b, V)."""
    if top_p >= 1.0:
        return probabilities
    ordered, index = probabilities.sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, index, ordered)


class _Batch:
    """Rows that are sampled together: their tokens so far, and cache, mask and next logits of the unfinished ones."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[Sequence[int]],
        max_new_tokens: int,
        ends: Tensor,
        pad_token_id: int,
        uniforms: Tensor | None,
    ) -> None:
        self.model, self.ends, self.uniforms = model, ends, uniforms
        self.longest = longest = max(map(len, prompts))
        padded = [[pad_token_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        input_ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        columns = torch.arange(longest + max_new_tokens, device=model.device)
        self.mask = (columns >= longest - lengths.unsqueeze(-1)).long()  # of all columns, also of those to come
        self.position = lengths - 1  # of the token read last
        graphs = static_cache(model, longest + max_new_tokens) if decodes_in_graphs(model) else None
        self.cache, self.cache_name = graphs or spare_cache(model), cache_argument(model)
        self.step: StaticStep | None = None
        row = torch.arange(len(prompts), device=model.device)
        positions = (columns[:longest] - (longest - lengths).unsqueeze(-1)).clamp(min=0)
        last, inputs = torch.full_like(row, longest - 1), self._inputs(positions)
        mask = self.mask[:, :longest]
        self.logits = token_logits(model, input_ids, row, last, attention_mask=mask, **inputs).logits
        self.rows, self.ended = row, torch.zeros_like(row, dtype=torch.bool)  # of the rows that are still computed
        self.drawn: list[tuple[Tensor, Tensor]] = []  # of these rows: tokens and log-probabilities, a step each
        self.written = 0
        self.tokens = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=model.device)
        self.logprobs = self.logits.new_zeros(self.tokens.shape)

    def advance(self, tokens: Tensor, logprobs: Tensor, time: int) -> bool:
        """Append a token to each row and compute the next logits; False once no further token is wanted."""
        self.drawn.append((tokens, logprobs))
        self.ended = self.ended | torch.isin(tokens, self.ends)
        if time + 1 == self.tokens.shape[1]:
            return False
        graphs = isinstance(self.cache, StaticCache)
        if not graphs or (time + 1) % TOKENS_BETWEEN_QUESTIONS == 0:
            alive = len(self.ended) - int(self.ended.sum())
            if not alive:
                return False
            if alive <= (1 - (ENDED_SHARE_IN_GRAPHS if graphs else ENDED_SHARE_TO_DROP)) * len(self.ended):
                tokens = self._keep((~self.ended).nonzero().squeeze(-1), tokens)
        self._read(tokens, self.longest + time + 1)
        return True

    def samples(self) -> list[Sample]:
        """What was sampled, in the order of the prompts."""
        self._write()
        ends = torch.isin(self.tokens, self.ends)
        ended = ends.any(-1)
        lengths = torch.where(ended, ends.int().argmax(-1) + 1, self.tokens.shape[1])  # what follows an end is not read
        rows = zip(self.tokens.tolist(), self.logprobs.tolist(), lengths.tolist(), ended.tolist(), strict=True)
        return [Sample(tokens[:length], logprobs[:length], end) for tokens, logprobs, length, end in rows]

    def _write(self) -> None:
        """Put what was drawn for these rows into its place."""
        if self.drawn:
            columns = slice(self.written, self.written + len(self.drawn))
            tokens, logprobs = zip(*self.drawn, strict=True)
            self.tokens[self.rows, columns] = torch.stack(tokens, -1)
            self.logprobs[self.rows, columns] = torch.stack(logprobs, -1)
            self.written, self.drawn = columns.stop, []

    def _keep(self, index: Tensor, tokens: Tensor) -> Tensor:
        """Remove all other rows. Padding columns that no row needs are kept: copying costs more."""
        self.cache.reorder_cache(index)  # type: ignore[arg-type]  # unlike batch_select_indices, of recurrent states too
        self._write()
        self.rows, self.ended = self.rows[index], self.ended[index]
        self.mask, self.position = self.mask[index], self.position[index]
        self.uniforms = None if self.uniforms is None else self.uniforms[index]
        self.step = None
        return tokens[index]

    def _read(self, tokens: Tensor, length: int) -> None:
        """Compute the logits after these tokens, the last of `length` columns."""
        self.position = self.position + 1
        if isinstance(self.cache, StaticCache):
            self.step = self.step or StaticStep(self.model, self.cache, self.mask)
            self.logits = at_least_float32(self.step(tokens, self.position, length))
            return
        inputs = self._inputs(self.position.unsqueeze(-1))
        if self.cache_name == ATTENTION_CACHE:
            inputs["attention_mask"] = self.mask[:, :length]  # a purely recurrent state has no past tokens to mask
        self.logits = at_least_float32(self.model(input_ids=tokens.unsqueeze(-1), **inputs).logits[:, -1])

    def _inputs(self, position_ids: Tensor) -> dict[str, Any]:
        return {"position_ids": position_ids, self.cache_name: self.cache, "use_cache": True}


def _check(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_p: float
) -> None:
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ConfigError(
            f"sampling needs temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1, "
            f"not {temperature}, {top_p} and {max_new_tokens}"
        )
    check_prompts_fit(model, prompts, max_new_tokens)


def check_prompts_fit(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, first: int = 0
) -> None:
    """Raise ConfigError for an empty prompt, and for one without room for `max_new_tokens` in the context. `first`
    numbers the first prompt."""
    context = context_length(model)
    for number, prompt in enumerate(prompts, start=first):
        if not prompt:
            raise ConfigError(f"prompt {number} has no tokens; start it with a BOS token or remove it")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise ConfigError(
                f"prompt {number} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, more than the "
                f"model's context of {context}: shorten the prompts, lower max_new_tokens or use a longer context"
            )
