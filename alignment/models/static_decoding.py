"""Decoding over a cache of fixed size, in which a token of all rows is one CUDA graph: one launch instead of thousands.

Where `RLHF_CUDA_GRAPHS` is 1 and the model is on a GPU, `alignment.models.generation` uses it for models whose layers
all keep every token. A graph is recorded for each batch, as weights may lie elsewhere by the next one, and again when
rows are removed.
"""

import os

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

VARIABLE = "RLHF_CUDA_GRAPHS"


def decodes_in_graphs(model: PreTrainedModel) -> bool:
    """Whether the environment asks for graphs and the model is where they exist."""
    return model.device.type == "cuda" and os.environ.get(VARIABLE) == "1"


def static_cache(model: PreTrainedModel, columns: int) -> StaticCache | None:
    """A cache for so many tokens a row; None for a model that needs another (sliding windows, states) or no SDPA."""
    if model.config._attn_implementation != "sdpa" or not model._can_compile_fullgraph:
        return None
    cache = StaticCache(config=model.config, max_cache_len=columns)
    return cache if all(type(layer) is StaticLayer for layer in cache.layers) else None


class StaticStep:
    """The forward of one token a row, with inputs and outputs at fixed addresses; recorded where there is a GPU."""

    def __init__(self, model: PreTrainedModel, cache: StaticCache, mask: Tensor) -> None:
        """`mask` is 1 for columns that a row may see once they are written. Shape: (b, columns)."""
        rows = len(mask)
        self.model, self.cache = model, cache
        self.seen_once_written = mask.bool()
        self.seen = torch.zeros_like(self.seen_once_written).view(rows, 1, 1, -1)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=mask.device)
        self.position = torch.zeros_like(self.tokens)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None

    def __call__(self, tokens: Tensor, position: Tensor, length: int) -> Tensor:
        """Logits after these tokens, the last of `length` columns. Shapes: (b,), (b,) -> (b, V)."""
        self.tokens.copy_(tokens.unsqueeze(-1))
        self.position.copy_(position.unsqueeze(-1))
        self.seen[:, 0, 0, :length] = self.seen_once_written[:, :length]
        if self.graph is not None:
            self.graph.replay()
        elif self.tokens.device.type == "cuda":
            return self._run_and_record()
        else:
            self.logits = self._forward()
        assert self.logits is not None
        return self.logits

    def _run_and_record(self) -> Tensor:
        """Compute this token on a stream of its own, which prepares libraries and memory, and record for the next."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            logits = self._forward()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._forward()  # recorded, and computed by a replay only
        self.graph = graph
        return logits

    def _forward(self) -> Tensor:
        output = self.model(
            input_ids=self.tokens,
            position_ids=self.position,
            attention_mask=self.seen,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits
