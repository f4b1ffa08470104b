"""The components of a reward: models and functions of text, a weighted sum, each logged under its name."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError, ConfigError, TrainingError
from alignment.models.ensembles import Ensemble, combined, spread
from alignment.models.scalar import member_scores, scalar_head
from alignment.models.tokenizer import load_tokenizer
from alignment.rewards.trl_functions import TRLReward, as_reward_function, with_rows

RewardFunction = Callable[..., Sequence[float]]  # of (prompts, responses), or in TRL's signature


@dataclass(frozen=True)
class RuleReward:
    """A function of (prompts, responses) as text that returns one number per response; special tokens are removed."""

    name: str
    weight: float
    fn: RewardFunction


@dataclass(frozen=True)
class ModelReward:
    """A sequence-classification model with one label, read at the last token of prompt and response, or an
    ensemble of several.

    The disagreement of an ensemble's members is logged as `reward/NAME/spread`; a rise means that the policy has left
    the distribution that they were trained on.
    """

    name: str
    weight: float
    model: PreTrainedModel | Ensemble

    @property
    def models(self) -> Sequence[PreTrainedModel]:
        """The model alone, or the members of the ensemble."""
        return self.model.models if isinstance(self.model, Ensemble) else (self.model,)


REMEDY = "train the reward model with the policy's tokenizer, or wrap it in a RuleReward that reads text"
Component = RuleReward | ModelReward
Reward = PreTrainedModel | Ensemble | RewardFunction | Sequence[Component | PreTrainedModel | Ensemble]


def reward_components(reward: Reward, tokenizer: PreTrainedTokenizerBase) -> list[Component]:
    """The reward as a list of named, validated components."""
    parts = list(reward) if isinstance(reward, Sequence) else [reward]
    components = [_component(part) for part in parts]
    names = [component.name for component in components]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"the reward needs at least one component, each with a unique name, not {names}")
    for component in components:
        if isinstance(component, ModelReward) and not component.models:
            raise ConfigError(f"reward '{component.name}' is an ensemble without models: pass at least one")
        if not math.isfinite(component.weight):
            raise ConfigError(f"the weight of reward '{component.name}' is {component.weight}, not a finite number")
    for name, model in named_models(components):
        _check_model(name, model, tokenizer)
    return components


def with_columns(
    components: Sequence[Component],
    rows: Sequence[Mapping[str, Any]],
    tokens: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Component]:
    """The components; functions in TRL's signature get the rows of the data set that the prompts are from, if any."""
    if not any(isinstance(component, RuleReward) and isinstance(component.fn, TRLReward) for component in components):
        return list(components)
    texts = tokenizer.batch_decode([list(ids) for ids in tokens], skip_special_tokens=True) if rows else []
    return [
        replace(component, fn=with_rows(component.name, component.fn, rows, texts))
        if isinstance(component, RuleReward) and isinstance(component.fn, TRLReward)
        else component
        for component in components
    ]


def named_models(components: Sequence[Component]) -> Iterator[tuple[str, PreTrainedModel]]:
    """Every model with its name: the component's, with the member's number in an ensemble."""
    for component in components:
        if isinstance(component, RuleReward):
            continue
        if isinstance(component.model, Ensemble):
            yield from ((f"{component.name}/{number}", model) for number, model in enumerate(component.models))
        else:
            yield component.name, component.model


def _component(part: object) -> Component:
    if isinstance(part, RuleReward):
        return replace(part, fn=as_reward_function(part.name, part.fn))
    if isinstance(part, ModelReward):
        return part
    if isinstance(part, PreTrainedModel | Ensemble):
        return ModelReward("model", 1.0, part)
    if callable(part):
        name = getattr(part, "__name__", "rule").strip("<>")
        return RuleReward(name, 1.0, as_reward_function(name, part))
    raise ConfigError(
        f"a reward is a model, an Ensemble, a function or a list of RuleReward and ModelReward, not {type(part)}"
    )


def _check_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    scalar_head(model)
    model.eval()
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    rows = len(embeddings.weight)
    if rows < len(tokenizer):
        raise CheckpointError(
            f"reward model '{name}' has {rows} embeddings, but the policy's tokenizer {len(tokenizer)} tokens: {REMEDY}"
        )
    if token := _first_difference(model, tokenizer):
        raise CheckpointError(
            f"reward model '{name}' was saved with another tokenizer: {model.name_or_path} does not have {token!r} "
            f"where the policy's has it; {REMEDY}"
        )


def _first_difference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first token of the policy's tokenizer that differs in the one saved beside the model, if any."""
    directory = Path(model.name_or_path or "nowhere")
    if not (directory / "tokenizer_config.json").is_file():
        return None
    own = load_tokenizer(directory).get_vocab()
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {*tokenizer.all_special_tokens}  # a PAD that was added later is never scored
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
    response_ids = [list(sequence[length:]) for sequence, length in zip(sequences, prompt_lengths, strict=True)]
    scores: dict[str, Tensor] = {}
    for component in components:
        if isinstance(component, RuleReward):
            values = _rule_scores(component, prompts, responses, response_ids)
        else:
            members = member_scores(component.model, sequences, prompt_lengths, token_budget)
            values = members[0]
            if isinstance(component.model, Ensemble):
                values = combined(members, component.model.combine, component.model.coef)
                scores[f"{component.name}/spread"] = spread(members)
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0])
            text = tokenizer.decode(list(sequences[row]))
            raise TrainingError(
                f"reward '{component.name}' is {float(values[row])} for {text!r}, not a finite number: look at "
                "this response, and at the reward"
            )
        scores[component.name] = values
    return scores


def _rule_scores(
    rule: RuleReward, prompts: list[str], responses: list[str], response_ids: Sequence[Sequence[int]]
) -> Tensor:
    by_name = isinstance(rule.fn, TRLReward)
    returned = rule.fn(prompts, responses, response_ids) if by_name else rule.fn(prompts, responses)
    try:
        values = [_number(value) for value in returned]
    except (TypeError, ValueError, OverflowError) as error:
        shown = " ".join(repr(returned).split())[:80]
        raise TrainingError(
            f"reward '{rule.name}' returned {shown} for {len(responses)} responses; return a list, a number for each"
        ) from error
    if len(values) != len(responses):
        raise TrainingError(
            f"reward '{rule.name}' returned {len(values)} values for {len(responses)} responses; return one for each"
        )
    return torch.tensor(values)


def _number(value: Any) -> float:
    """A number as float; text that reads as one is an error."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    return float(value)


def total_score(components: Sequence[Component], scores: dict[str, Tensor]) -> Tensor:
    """Σ weight · score over the components. Shape: (B,)."""
    return torch.stack([component.weight * scores[component.name] for component in components]).sum(0)
