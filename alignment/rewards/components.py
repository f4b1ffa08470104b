"""What scores a response: reward models and plain functions, weighted and added, each logged by itself."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError, ConfigError, TrainingError
from alignment.models.ensembles import Ensemble, combined, spread
from alignment.models.safe_loading import NEVER_CODE
from alignment.models.scalar import member_scores, scalar_head
from alignment.options import Combine

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class RuleReward:
    """A function of (prompts, responses) as text, one number a response; special tokens are left out of the text."""

    name: str
    weight: float
    fn: RewardFunction


@dataclass(frozen=True)
class ModelReward:
    """A sequence-classification model with one label, read at the last token of prompt and response."""

    name: str
    weight: float
    model: PreTrainedModel


@dataclass(frozen=True)
class EnsembleReward:
    """Several such models with scores on one scale: their mean, the lowest, or mean − coef · variance.

    How far they are apart is logged as `reward/NAME/spread`; where that rises, the policy has left what they know.
    """

    name: str
    weight: float
    models: Sequence[PreTrainedModel]
    combine: Combine = "mean"
    coef: float = 0.5


REMEDY = "train the reward model with the policy's tokenizer, or wrap it in a RuleReward that reads text"
Component = RuleReward | ModelReward | EnsembleReward
Reward = PreTrainedModel | RewardFunction | Sequence[Component | PreTrainedModel]


def reward_components(reward: Reward, tokenizer: PreTrainedTokenizerBase) -> list[Component]:
    """The reward as a list of named parts, checked."""
    parts = list(reward) if isinstance(reward, Sequence) else [reward]
    components = [_component(part) for part in parts]
    names = [component.name for component in components]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"the reward needs at least one part, and each a name of its own; these are {names}")
    for component in components:
        if isinstance(component, EnsembleReward) and not component.models:
            raise ConfigError(f"reward '{component.name}' is an ensemble of no models: give at least one")
        if not math.isfinite(component.weight):
            raise ConfigError(f"the weight of reward '{component.name}' is {component.weight}; give it a number")
    for name, model in named_models(components):
        _check_model(name, model, tokenizer)
    return components


def model_component(name: str, weight: float, reward: PreTrainedModel | Ensemble) -> Component:
    """What `alignment.models.scalar.load_rewards` gives, as a part of the reward."""
    if isinstance(reward, Ensemble):
        return EnsembleReward(name, weight, reward.models, reward.combine, reward.coef)
    return ModelReward(name, weight, reward)


def named_models(components: Sequence[Component]) -> Iterator[tuple[str, PreTrainedModel]]:
    """Every model among the parts: a reward model by its part's name, members of an ensemble by name and number."""
    for component in components:
        if isinstance(component, ModelReward):
            yield component.name, component.model
        elif isinstance(component, EnsembleReward):
            yield from ((f"{component.name}/{number}", model) for number, model in enumerate(component.models))


def _component(part: object) -> Component:
    if isinstance(part, RuleReward | ModelReward | EnsembleReward):
        return part
    if isinstance(part, PreTrainedModel):
        return ModelReward("model", 1.0, part)
    if callable(part):
        return RuleReward(getattr(part, "__name__", "rule").strip("<>"), 1.0, part)
    raise ConfigError(
        f"a reward is a model, a function or a list of RuleReward, ModelReward and EnsembleReward, not {type(part)}"
    )


def _check_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    scalar_head(model)
    model.eval()
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    rows = len(embeddings.weight)
    if rows < len(tokenizer):
        raise CheckpointError(
            f"reward model '{name}' knows {rows} tokens and the policy's tokenizer has {len(tokenizer)}: {REMEDY}"
        )
    if odd := _read_otherwise(model, tokenizer):
        raise CheckpointError(
            f"reward model '{name}' was saved with another tokenizer: {model.name_or_path} does not have {odd!r} "
            f"where the policy's has it; {REMEDY}"
        )


def _read_otherwise(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first token of the policy's tokenizer that is not the same in the one saved beside the model, if one is."""
    place = Path(model.name_or_path or "nowhere")
    if not (place / "tokenizer_config.json").is_file():
        return None
    own = AutoTokenizer.from_pretrained(place, **NEVER_CODE).get_vocab()
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {*tokenizer.all_special_tokens}  # a PAD that was added later is never read
    return next((word for word, number in words if word not in special and own.get(word) != number), None)


def component_scores(
    components: Sequence[Component],
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    token_budget: int,
) -> dict[str, Tensor]:
    """Unweighted scores by component, and `NAME/spread` beside an ensemble's. Shapes: (B,), on the CPU.

    Raises TrainingError for a wrong count or a NaN.
    """
    prompts: list[str] = []
    responses: list[str] = []
    if any(isinstance(component, RuleReward) for component in components):
        pairs = list(zip(sequences, prompt_lengths, strict=True))
        prompts = tokenizer.batch_decode([list(s[:n]) for s, n in pairs], skip_special_tokens=True)
        responses = tokenizer.batch_decode([list(s[n:]) for s, n in pairs], skip_special_tokens=True)
    scores: dict[str, Tensor] = {}
    for component in components:
        if isinstance(component, RuleReward):
            values = _rule_scores(component, prompts, responses)
        elif isinstance(component, ModelReward):
            values = member_scores(component.model, sequences, prompt_lengths, token_budget)[0]
        else:
            ensemble = Ensemble(tuple(component.models), component.combine, component.coef)
            members = member_scores(ensemble, sequences, prompt_lengths, token_budget)
            values = combined(members, component.combine, component.coef)
            scores[f"{component.name}/spread"] = spread(members)
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0])
            text = tokenizer.decode(list(sequences[row]))
            raise TrainingError(
                f"reward '{component.name}' is {float(values[row])} for {text!r}, not a number that can be learnt from"
            )
        scores[component.name] = values
    return scores


def _rule_scores(rule: RuleReward, prompts: list[str], responses: list[str]) -> Tensor:
    given = rule.fn(prompts, responses)
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        shown = " ".join(repr(given).split())[:80]
        raise TrainingError(
            f"reward '{rule.name}' returned {shown} for {len(responses)} responses; return a list, a number for each"
        ) from error
    if len(values) != len(responses):
        raise TrainingError(
            f"reward '{rule.name}' returned {len(values)} values for {len(responses)} responses; return one for each"
        )
    return torch.tensor(values)


def total_score(components: Sequence[Component], scores: dict[str, Tensor]) -> Tensor:
    """Σ weight · score over the components. Shape: (B,)."""
    return torch.stack([component.weight * scores[component.name] for component in components]).sum(0)
