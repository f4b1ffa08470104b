"""Models with a scalar output per token: the reward model and the value model.

Both are plain `AutoModelForSequenceClassification` checkpoints with one label, so that they load anywhere; here their
head is read at any token. A reward model carries its normalisation in its config (`reward_bias`,
`reward_scale`), so that scores mean the same wherever it is loaded: score = (raw - reward_bias) / reward_scale.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from alignment.bounded import read_json
from alignment.distributed.devices import autocast, device, frozen_dtype, to_device
from alignment.errors import CheckpointError, ConfigError
from alignment.models import gguf_files
from alignment.models.architecture import cache_argument, context_length
from alignment.models.checkpoint_files import count_parameters, is_gguf, refuse_adapter
from alignment.models.ensembles import Ensemble, EnsembleFile, combined
from alignment.models.finite import check_finite
from alignment.models.heads import at_least_float32
from alignment.models.likelihood import likelihood_head, load_likelihood, save_likelihood
from alignment.models.logprobs import length_batches, read_only_at, right_pad
from alignment.models.safe_loading import NEVER_CODE, PLAIN, read_plainly
from alignment.paths import is_directory

ENSEMBLE_FILE = "ensemble.json"
LEFT_OUT = re.compile(
    r"rotary_emb|inv_freq|position_ids"  # buffers in old checkpoints
    r"|lm_head|embed_out|score|classifier|qa_outputs|v_head|value_head|mtp\w*"  # heads
    r"|\w*(vision|visual|image|video|audio|speech|multi_?modal|mm_proj)\w*"
)
MASKS = re.compile(r"(attn|attention)\.(masked_)?bias$")  # of old checkpoints: masks, no biases
SPARE_PARAMETERS = 10_000_000  # a head that is shared with the embeddings, or was never stored


def load_causal_model(
    path: str | Path, dtype: torch.dtype = torch.float32, quantization: QuantizationConfigMixin | None = None
) -> PreTrainedModel:
    """A language model from a directory, a GGUF file or the hub, in eval mode, on the device of this process."""
    with read_plainly("no causal language model", path):
        if is_gguf(path):
            model = gguf_files.load_model(path, dtype)
            check_finite(model.state_dict(), path)
        else:
            decoder_config(path)
            model = _with_all_weights(AutoModelForCausalLM, path, dtype, quantization)
    model.eval()
    return to_device(model) if quantization is None else model


def decoder_config(path: str | Path) -> PreTrainedConfig:
    """The config of a checkpoint. Raises CheckpointError for an encoder-decoder."""
    config = _config_of(path)
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{path} is an encoder-decoder ({config.model_type}), and this is for decoders alone: take a causal "
            "language model"
        )
    return config


def check_config(path: Path) -> None:
    """Raise CheckpointError for a checkpoint whose config shows that a stage cannot use it; no weights are read."""
    with read_plainly("no causal language model", path):
        if is_gguf(path):
            gguf_files.check_file(path)
            return
        config = decoder_config(path)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"Unrecognized configuration class {type(config)} for this kind of AutoModel")
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if model.config_class == config.sub_configs.get("text_config"):  # as AutoModelForCausalLM loads composite models
        config = config.get_text_config()
    cache_argument(model)
    check_scalar_form(config, model.__name__)


def _with_all_weights(
    auto: Any, path: str | Path, dtype: torch.dtype, quantization: QuantizationConfigMixin | None = None
) -> PreTrainedModel:
    """The model; transformers would draw weights at random that the checkpoint does not have. `quantization` happens on
    the device, as weights are read."""
    config = _config_of(path)
    if is_directory(path):
        _check_parameters(auto, config, Path(path))
    model: PreTrainedModel
    options: dict[str, Any] = {}
    if quantization is not None:
        options = {"quantization_config": quantization, "device_map": {"": device()}}
    model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True, **options, **PLAIN)
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path} has no weights for {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''} of "
            f"{type(model).__name__}, which would be random: it was saved as another kind of model"
        )
    unused = unused_weights(model, report["unexpected_keys"])
    if unused:
        raise CheckpointError(
            f"{path} has weights that the {type(model).__name__} of its config.json has no place for, and they would "
            f"be left out: {', '.join(unused[:3])}{', …' if len(unused) > 3 else ''}; correct config.json (layers, "
            "biases) or fetch the checkpoint again"
        )
    check_finite(model.state_dict(), path)
    return model


def unused_weights(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Of the weights that a model has no place for, those that belong to it.

    The others belong to a part that is left out on purpose: the head of another task, another modality, or a buffer
    that models compute. A part that the model does have, such as its layers, is never one of these.
    """
    modules = {name for name, _ in model.named_modules()}

    def part(key: str) -> str:
        """The first name in a key below which the model has nothing."""
        names = key.split(".")
        depth = next((i for i in range(len(names)) if ".".join(names[: i + 1]) not in modules), len(names) - 1)
        return names[depth]

    return sorted(key for key in unexpected if not (MASKS.search(key) or LEFT_OUT.fullmatch(part(key))))


def _config_of(path: str | Path) -> PreTrainedConfig:
    """The config of a checkpoint that is no adapter: of one, transformers would load the base that it names."""
    refuse_adapter(path, find_adapter_config_file(str(path)))
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, **NEVER_CODE)
    return config


def _check_parameters(auto: Any, config: PreTrainedConfig, path: Path) -> None:
    """Raise CheckpointError if the model that the config describes is larger than its weights, before it is made."""
    with torch.device("meta"):
        model = auto.from_config(config, **NEVER_CODE)
    described, stored = sum(weight.numel() for weight in model.parameters()), count_parameters(path)
    if described > 2 * stored + SPARE_PARAMETERS:
        raise CheckpointError(
            f"{path / 'config.json'} describes a model of {described:,} parameters, but the weights beside it have "
            f"{stored:,}: fetch the checkpoint again"
        )


def check_context(model: PreTrainedModel | PreTrainedConfig, length_tokens: int, option: str) -> None:
    """Raise ConfigError if an option allows longer sequences than the model's context."""
    context = context_length(model)
    if context is not None and length_tokens > context:
        raise ConfigError(f"{option} {length_tokens} is more than the model's context of {context} tokens: lower it")


def load_scalar_model(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A reward or value model (sequence classification with one label) in eval mode, on the device of this process."""
    with read_plainly("no sequence classification model", path):
        model = _with_all_weights(AutoModelForSequenceClassification, path, dtype)
    scalar_head(model)
    set_normalisation(model, *read_normalisation(path, vars(model.config)))
    load_likelihood(model, Path(path))
    model.eval()
    return to_device(model)


def load_rewards(directory: Path, load: Callable[[Path], PreTrainedModel] | None = None) -> PreTrainedModel | Ensemble:
    """The output of the stage `reward`: a reward model, or the ensemble of all members (`model/`, `model-1/`, …).

    By default they are loaded to be read, not trained: in the precision of the stage.
    """
    load = load or partial(load_scalar_model, dtype=frozen_dtype())
    model = load(directory / "model")
    file = directory / ENSEMBLE_FILE
    if not file.exists():
        return model
    try:
        ensemble = EnsembleFile.model_validate(read_json(file))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} describes no ensemble ({error}); train the reward model again") from error
    others = [load(directory / f"model-{number}") for number in range(1, ensemble.members)]
    return Ensemble((model, *others), ensemble.combine, ensemble.combine_coef)


def scalar_config(language_model: PreTrainedModel) -> PreTrainedConfig:
    """The config of a scalar model of this architecture. Raises CheckpointError if transformers has no such form."""
    check_scalar_form(language_model.config, type(language_model).__name__)
    config = copy.deepcopy(language_model.config)
    config.num_labels = 1
    vars(config).pop("quantization_config", None)  # is of the loaded weights, not of the model
    return config


def check_scalar_form(config: PreTrainedConfig, architecture: str) -> None:
    """Raise CheckpointError if transformers has no sequence classification form of an architecture."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CheckpointError(
            f"transformers has no sequence classification form of {architecture}, which reward and value model need: "
            "take a checkpoint of an architecture that has one (docs/models.md lists some)"
        )


def scalar_model_from(language_model: PreTrainedModel) -> PreTrainedModel:
    """A scalar model with a copy of the language model's trunk and a head of zeros: deterministic, all scores 0."""
    config = scalar_config(language_model)
    with torch.random.fork_rng():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=language_model.dtype)
    nn.init.zeros_(scalar_head(model).weight)
    model.base_model.load_state_dict(language_model.base_model.state_dict())
    model.to(device=language_model.device)  # type: ignore[call-arg]
    model.eval()
    return model


def scalar_model_over(language_model: PreTrainedModel) -> PreTrainedModel:
    """A scalar model that shares the language model's trunk, with a head of zeros in float32 or better."""
    config = scalar_config(language_model)
    with torch.device("meta"):  # the trunk of the new model is never materialized
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    setattr(model, model.base_model_prefix, language_model.base_model)
    head = scalar_head(model)
    head.to_empty(device=language_model.device)
    head.to(torch.promote_types(language_model.dtype, torch.float32))
    for weight in head.parameters():
        nn.init.zeros_(weight)
    model.eval()
    return model


def save_model(
    model: PreTrainedModel,
    path: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write safetensors, config and, if any, the tokenizer. `state` has the weights of a model that is sharded."""
    state = model.state_dict() if state is None else state
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("likelihood.")}
    model.save_pretrained(path, state_dict=weights)
    save_likelihood(model, path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that maps a hidden state to a scalar."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise CheckpointError(
            f"{type(model).__name__} has no per-token head with one output; load it with load_scalar_model, or "
            "create it from a causal model with scalar_model_from"
        )
    return head


def head_values(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The head's raw output for each hidden state, in float32 or better. Shapes: (..., h) -> (...)."""
    head = scalar_head(model)
    bias = None if head.bias is None else at_least_float32(head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.linear(at_least_float32(hidden), at_least_float32(head.weight), bias).squeeze(-1)


def read_normalisation(path: str | Path, config: Mapping[str, object]) -> tuple[float, float]:
    """The bias and the scale in a reward model's config. Raises CheckpointError if they are no numbers."""
    values = config.get("reward_bias", 0.0), config.get("reward_scale", 1.0)
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) < 2 or not numbers[1] > 0:
        raise CheckpointError(f"{path} has reward_bias {values[0]!r} and reward_scale {values[1]!r}: no normalisation")
    return numbers[0], numbers[1]


def set_normalisation(model: PreTrainedModel, bias: float, scale: float) -> None:
    """Define scores as (raw - bias) / scale, in the model's config, with which it is saved."""
    if not scale > 0:
        raise CheckpointError(f"reward_scale must be positive, not {scale}; do the raw rewards vary at all?")
    model.config.reward_bias = float(bias)
    model.config.reward_scale = float(scale)


def normalised(model: PreTrainedModel, raw: Tensor) -> Tensor:
    """(raw - reward_bias) / reward_scale, with bias and scale from the model's config (0 and 1 by default)."""
    bias = float(getattr(model.config, "reward_bias", 0.0))
    scale = float(getattr(model.config, "reward_scale", 1.0))
    return (raw - bias) / scale


def raw_scores(
    model: PreTrainedModel, hidden: Tensor, input_ids: Tensor, prompt_lengths: Tensor, lengths: Tensor
) -> Tensor:
    """Scalar head at the last token, plus the likelihood term if the model has one.

    Shapes: (b, t, h), (b, t), (b,), (b,) -> (b,).
    """
    last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
    scores = head_values(model, last)
    head = likelihood_head(model)
    return scores if head is None else scores + head(hidden, input_ids, prompt_lengths, lengths)


def _reading(model: PreTrainedModel, lengths: Tensor) -> AbstractContextManager[None]:
    """A score needs only the last hidden state of a row, unless a likelihood term reads the whole response."""
    if likelihood_head(model) is not None:
        return nullcontext()
    return read_only_at(model, torch.arange(len(lengths), device=lengths.device), lengths - 1)


def reward_scores(
    reward: PreTrainedModel | Ensemble,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    token_budget: int = 8192,
) -> Tensor:
    """Normalised score of each prompt+response. Shape: (sequences,), on the CPU."""
    scores = member_scores(reward, sequences, prompt_lengths, token_budget)
    return combined(scores, reward.combine, reward.coef) if isinstance(reward, Ensemble) else scores[0]


@torch.no_grad()
def member_scores(
    reward: PreTrainedModel | Ensemble,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    token_budget: int = 8192,
) -> Tensor:
    """Normalised scores by each member of an ensemble (a reward model has one). Shape: (members, sequences)."""
    models = reward.models if isinstance(reward, Ensemble) else (reward,)
    return torch.stack([_model_scores(model, sequences, prompt_lengths, token_budget) for model in models])


def _model_scores(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], token_budget: int
) -> Tensor:
    scores = torch.zeros(len(sequences), dtype=torch.float64 if model.dtype == torch.float64 else torch.float32)
    for rows in length_batches([len(sequence) for sequence in sequences], token_budget):
        input_ids = right_pad([sequences[i] for i in rows]).to(model.device)
        prompts = torch.tensor([prompt_lengths[i] for i in rows], device=model.device)
        lengths = torch.tensor([len(sequences[i]) for i in rows], device=model.device)
        with autocast(), _reading(model, lengths):
            hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            raw = raw_scores(model, hidden, input_ids, prompts, lengths)
        scores[rows] = normalised(model, raw).to(scores)
    return scores
