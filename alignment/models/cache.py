"""A key-value cache with spare columns: a new token is written in place instead of copying all that came before it."""

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

SPARE_COLUMNS = 128


class SpareLayer(DynamicLayer):
    """The keys and values of one layer, as views of buffers that are longer than they are."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append columns. Shapes: (b, heads, new, d) -> (b, heads, all, d)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self.buffers or after > self.buffers[0].shape[-2]:
            self.buffers = [
                self._buffer(new, new.shape[0], after + SPARE_COLUMNS, old)
                for new, old in ((key_states, self.keys), (value_states, self.values))
            ]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.narrow(2, before, after - before).copy_(new)
        self.keys, self.values = (buffer.narrow(2, 0, after) for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order, and the spare columns."""
        if self.get_seq_length() > 0:
            before, length = self.buffers, self.get_seq_length()
            self.buffers = [
                self._buffer(old, len(beam_idx), old.shape[2], old[:, :, :length].index_select(0, beam_idx))
                for old in before
            ]
            self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def _buffer(self, like: Tensor, rows: int, columns: int, content: Tensor | None) -> Tensor:
        buffer = like.new_empty(rows, like.shape[1], columns, like.shape[3])
        if content is not None and content.numel():
            buffer[:, :, : content.shape[-2]].copy_(content)
        return buffer


def spare_cache(model: PreTrainedModel) -> DynamicCache:
    """transformers' cache of this model; its layers that keep all tokens have spare columns."""
    cache = DynamicCache(config=model.config)
    cache.layers = [SpareLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
