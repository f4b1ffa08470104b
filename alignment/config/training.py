"""Options that stages with a training loop share: memory, and adapters in place of whole models.

At their defaults they are no part of a dump, so that they do not change the keys of recipes without them.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from alignment.config.base import Config, Count

LORA_ALPHA = 32
QUANTIZE = (
    "nf4: the frozen weights below the adapter in 4 bits (QLoRA; on a GPU, with the extra gpu); null: as they are"
)


def unset(value: object) -> bool:
    """Whether an option is empty or off, which is then its default."""
    return value is False or value in ("", None)


class TrainingMemory(Config):
    """Options that change memory and speed of training, and its result by rounding only."""

    micro_batch_tokens: Count | None = Field(
        None,
        exclude_if=unset,
        description="padded tokens per forward; changes memory and speed, not the result; null: from the model's "
        "size and the device's memory",
    )
    gradient_checkpointing: bool = Field(
        False,
        exclude_if=unset,
        description="recompute layers in the backward pass: less memory, one more forward",
    )


class AdapterOptions(TrainingMemory):
    """Training of an adapter instead of all weights; the stage's `model/` is a plain checkpoint all the same."""

    lora_rank: Count | None = Field(
        None, exclude_if=unset, description="train an adapter of this rank over frozen weights; null: the whole model"
    )
    lora_alpha: Count = Field(
        LORA_ALPHA,
        exclude_if=lambda alpha: alpha == LORA_ALPHA,
        description="an adapter adds (lora_alpha / lora_rank) · B A",
    )
    lora_targets: tuple[str, ...] | None = Field(
        None, exclude_if=unset, description="names of the layers with adapters; null: all linear layers"
    )

    quantize: Literal["nf4"] | None = Field(None, exclude_if=unset, description=QUANTIZE)

    @model_validator(mode="after")
    def _options_of_an_adapter(self) -> Self:
        check_adapter_options(self.lora_rank, self.lora_targets, self.quantize)
        return self


def check_adapter_options(rank: int | None, targets: tuple[str, ...] | None, quantize: str | None) -> None:
    """Raise ValueError for options of an adapter without one."""
    if rank is not None:
        return
    if targets is not None:
        raise ValueError("lora_targets need an adapter: set lora_rank, for example to 16")
    if quantize is not None:
        raise ValueError(f"quantize {quantize} is for the frozen weights below an adapter: set lora_rank, such as 16")
