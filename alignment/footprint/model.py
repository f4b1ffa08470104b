"""How much memory a model takes, from the sizes in its config alone: weights, training state, activations, caches.

What a layer saves for the backward pass, in values per token of width h with a feed-forward network of width f:

    norms        6 h    two norms: their input, the normalised input, and the output that the linear layers read;
                        4 h below an adapter, whose norms are not trained
    attention    5 h    queries, keys and values after their rotation, the output, and its copy for the last product
    network      4 f    both projections, the activation and their product

Where layers are recomputed, only their inputs (h) are saved, and one layer at a time is computed again. These are the
tensors that autograd saves of a Llama; other architectures differ by less than a third.
"""

from dataclasses import dataclass

FLOAT32 = 4  # bytes
ACTIVATION_BYTES = 2**29  # of a micro-batch, where the recipe does not say how many tokens it has
LOGITS_AT_A_TIME = 2**24  # values of a chunk of logits, 64 MiB in float32
LOGIT_COPIES = 4  # of a chunk: logits, their logarithm, the exponential, and the gradient


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. `feed_forward` is what a token goes through: with experts, those that it is sent to."""

    layers: int
    hidden: int
    feed_forward: int
    key_values: int
    vocabulary: int

    def saved_values(self, *, recompute: bool, adapter: bool = False) -> int:
        """Values per token that a forward keeps for its backward pass, without the logits."""
        layer = (9 if adapter else 11) * self.hidden + 4 * self.feed_forward
        return self.layers * self.hidden + layer if recompute else self.layers * layer

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of an adapter on every linear layer: queries, output, keys, values, and the network's three."""
        outer = 4 * self.hidden + 2 * (self.hidden + self.key_values) + 3 * (self.hidden + self.feed_forward)
        return self.layers * rank * outer


@dataclass(frozen=True)
class Footprint:
    """The memory that a model of this shape and number of parameters takes in float32, in bytes."""

    parameters: int
    shape: Shape

    @property
    def weights(self) -> int:
        """The weights alone."""
        return FLOAT32 * self.parameters

    @property
    def head(self) -> int:
        """The output head."""
        return FLOAT32 * self.shape.hidden * self.shape.vocabulary

    def training_state(self, rank: int | None) -> int:
        """Gradient and both moments of AdamW of what is trained: all weights, or an adapter with its own weights."""
        if rank is None:
            return 3 * self.weights
        return 4 * FLOAT32 * self.shape.adapter_parameters(rank)

    def activations(self, tokens: int, *, recompute: bool, adapter: bool) -> int:
        """What a forward over so many tokens saves for its backward pass."""
        return FLOAT32 * tokens * self.shape.saved_values(recompute=recompute, adapter=adapter)

    def reading(self, tokens: int) -> int:
        """What one layer computes at a time in a forward without gradients."""
        return FLOAT32 * tokens * (4 * self.shape.hidden + 3 * self.shape.feed_forward)

    def logits(self, tokens: int) -> int:
        """The logits of a chunk of so many tokens, at most LOGITS_AT_A_TIME, and their copies in a loss."""
        return LOGIT_COPIES * FLOAT32 * min(tokens * self.shape.vocabulary, LOGITS_AT_A_TIME)

    def cache(self, rows: int, tokens: int) -> int:
        """The sampler's keys and values for so many rows."""
        return FLOAT32 * rows * tokens * 2 * self.shape.layers * self.shape.key_values

    def micro_batch(
        self, option: int | None, batch_rows: int, row_tokens: int, *, recompute: bool, memory: int = ACTIVATION_BYTES
    ) -> int:
        """Padded tokens of the largest micro-batch: those of the batch within the budget, but at least a row."""
        budget = micro_batch_tokens(self.shape, option, memory, recompute=recompute)
        return max(row_tokens, min(budget, batch_rows * row_tokens))


def micro_batch_tokens(shape: Shape, option: int | None, memory: int, *, recompute: bool) -> int:
    """The recipe's padded tokens per forward, or as many as keep activations within `memory` bytes."""
    return max(1, memory // (FLOAT32 * shape.saved_values(recompute=recompute))) if option is None else option


def shape_of(config: object) -> Shape:
    """The sizes in a config of transformers, under the names that its architectures use."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config

    def size(*names: str) -> int | None:
        return next((int(value) for name in names if isinstance(value := getattr(text, name, None), int)), None)

    hidden = size("hidden_size", "n_embd", "d_model") or 1
    heads = size("num_attention_heads", "n_head", "n_heads") or 1
    width = size("head_dim") or hidden // heads
    experts = size("num_experts_per_tok")
    expert = size("moe_intermediate_size", "intermediate_size") if experts else None
    feed_forward = size("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * hidden
    return Shape(
        layers=size("num_hidden_layers", "n_layer", "n_layers") or 1,
        hidden=hidden,
        feed_forward=feed_forward if experts is None or expert is None else experts * expert,
        key_values=(size("num_key_value_heads") or heads) * width,
        vocabulary=size("vocab_size") or 1,
    )
