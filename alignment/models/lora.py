"""LoRA adapters over one frozen base: several models that share the memory of the base, with an adapter each.

y = W x + (alpha / rank) · B A x, with W frozen, A (rank, in) random and B (out, rank) zero at the start, so that a new
adapter changes nothing (Hu 2021, eq. 3). The layers are those of `peft`; files: `alignment.models.reward_adapters`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.errors import ConfigError
from alignment.models.heads import at_least_float32
from alignment.models.likelihood import likelihood_head

NAME = "default"
EXPERT_LAYERS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def over_base(model: PreTrainedModel) -> PreTrainedModel:
    """A model with modules of its own that shares the memory of another; only adapters and scalar head are copied."""
    return _copy_over(model, {id(w): w.detach() for name, w in model.named_parameters() if not _is_own(name)})


def rebased(model: PreTrainedModel, base: PreTrainedModel) -> PreTrainedModel | None:
    """A model with an adapter, over the memory of `base`; None if its trunk has other weights."""
    base_weights = dict(base.base_model.named_parameters())
    own = {n.replace(".base_layer", ""): w for n, w in model.base_model.named_parameters() if not _is_own(n)}
    if own.keys() != base_weights.keys() or not all(_same(weight, base_weights[name]) for name, weight in own.items()):
        return None
    shared = {id(weight): base_weights[name].detach() for name, weight in own.items()}
    return _copy_over(model, shared | _shared_language_head(model, base))


def _shared_language_head(model: PreTrainedModel, base: PreTrainedModel) -> dict[int, Tensor]:
    """The language head of a reward's likelihood term, if it equals the base's own."""
    term, head = likelihood_head(model), base.get_output_embeddings()
    if term is None or not isinstance(head, nn.Linear) or not _same(term.language_head.weight, head.weight):
        return {}
    return {id(term.language_head.weight): head.weight.detach()}


def _same(weight: Tensor, other: Tensor) -> bool:
    """Equality at the precision of `other`."""
    return (
        weight.device == other.device
        and weight.shape == other.shape
        and torch.equal(weight.detach().to(other.dtype), other.detach())
    )


def _copy_over(model: PreTrainedModel, tensors: dict[int, Tensor]) -> PreTrainedModel:
    """A deep copy in which the parameters with these ids are replaced by frozen `tensors`."""
    memo: dict[int, object] = {key: nn.Parameter(tensor, requires_grad=False) for key, tensor in tensors.items()}
    return copy.deepcopy(model, memo)


def _is_own(name: str) -> bool:
    """Whether a parameter is never shared between models: an adapter, or the head of a scalar model."""
    return ".lora_" in name or name.startswith(("score.", "likelihood.coef."))


def has_adapter(model: nn.Module) -> bool:
    """Whether the model has LoRA layers."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def adapter_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The adapter's matrices, and the head (and likelihood coefficients) of a scalar model, by name."""
    return {name: weight for name, weight in model.named_parameters() if _is_own(name)}


def add_adapter(
    model: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Add a zero-initialized adapter to the linear layers of the trunk (those in `targets`, or all)."""
    config = lora_config(model, rank, alpha, targets)
    try:
        inject(model, config, seed)
    except ValueError as error:
        raise ConfigError(
            f"{type(model).__name__} cannot have adapters on {sorted(config.target_modules or ())}: {error} Name other "
            "lora_targets, or train whole models"
        ) from error


def lora_config(model: PreTrainedModel, rank: int, alpha: int, targets: Sequence[str] | None = None) -> LoraConfig:
    """peft's options for an adapter on these layers of the trunk. Raises ConfigError for a layer it does not have."""
    available = linear_layers(model)
    matched = sorted(available if targets is None else available & set(targets))
    if not matched or (targets is not None and set(targets) - set(matched)):
        raise ConfigError(
            f"lora_targets {list(targets or [])} are not all linear layers of {type(model).__name__}, which has "
            f"{sorted(available)}: choose from these, or leave lora_targets out for all"
        )
    transposed = any(isinstance(module, Conv1D) for module in model.base_model.modules())
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=matched, fan_in_fan_out=transposed)


def linear_layers(model: PreTrainedModel) -> set[str]:
    """The last part of the name of each linear layer of the trunk that may have an adapter: q_proj, down_proj, ...

    Beside fused experts, peft takes a layer with the name of an expert's for the experts: such layers have none.
    """
    modules = model.base_model.named_modules()
    names = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear | Conv1D)}
    weights = model.base_model.named_parameters()
    fused = any(weight.dim() == 3 and name.rpartition(".")[0].endswith("experts") for name, weight in weights)
    return names - EXPERT_LAYERS if fused else names


def inject(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Inject adapters in float32 or better, initialized from `seed`; the trunk is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)
    for weight in adapter_weights(model).values():
        weight.data = at_least_float32(weight.data)
    model.eval()


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model that computes the same: W + (alpha / rank) · B A in place of each adapted W.

    It is in float32 or better, since an adapter's delta may be below the resolution of half precision. Weights without
    an adapter may share memory with `model`: train a copy of the result, not the result itself.
    """
    return merge_adapters(over_base(model))


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The same as `merged`, in place: no second copy of the weights, and the adapters are gone."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            weight = at_least_float32(base.weight) + adapter_delta(layer)
            base.weight = nn.Parameter(weight.detach(), requires_grad=False)
            model.set_submodule(name, base)
    for parameter in model.parameters():
        parameter.data = at_least_float32(parameter.data)
    return model


def adapter_delta(layer: Any) -> Tensor:
    """The delta of an adapter to the weight of its layer."""
    delta: Tensor = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    return delta
