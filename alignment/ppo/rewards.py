"""What scores a response: reward models and plain functions, weighted and added, each logged by itself."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import CheckpointError, ConfigError, TrainingError
from alignment.model import reward_scores, scalar_head

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


Component = RuleReward | ModelReward
Reward = PreTrainedModel | RewardFunction | Sequence[Component | PreTrainedModel]


def reward_components(reward: Reward, tokenizer: PreTrainedTokenizerBase) -> list[Component]:
    """The reward as a list of named parts, checked."""
    parts = list(reward) if isinstance(reward, Sequence) else [reward]
    components = [_component(part) for part in parts]
    names = [component.name for component in components]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"the reward needs at least one part, and each a name of its own; these are {names}")
    for component in components:
        if isinstance(component, ModelReward):
            _check_model(component, tokenizer)
        if not math.isfinite(component.weight):
            raise ConfigError(f"the weight of reward '{component.name}' is {component.weight}; give it a number")
    return components


def _component(part: object) -> Component:
    if isinstance(part, RuleReward | ModelReward):
        return part
    if isinstance(part, PreTrainedModel):
        return ModelReward("model", 1.0, part)
    if callable(part):
        return RuleReward(getattr(part, "__name__", "rule").strip("<>"), 1.0, part)
    raise ConfigError(f"a reward is a model, a function or a list of RuleReward and ModelReward, not {type(part)}")


def _check_model(component: ModelReward, tokenizer: PreTrainedTokenizerBase) -> None:
    scalar_head(component.model)
    component.model.eval()
    embeddings = component.model.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    rows = len(embeddings.weight)
    if rows < len(tokenizer):
        raise CheckpointError(
            f"reward model '{component.name}' knows {rows} tokens and the policy's tokenizer has {len(tokenizer)}: "
            "train the reward model with the policy's tokenizer, or wrap it in a RuleReward that reads text"
        )


def component_scores(
    components: Sequence[Component],
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    token_budget: int,
) -> dict[str, Tensor]:
    """Unweighted scores by component. Shapes: (B,), on the CPU. Raises TrainingError for a wrong count or a NaN."""
    prompts: list[str] = []
    responses: list[str] = []
    if any(isinstance(component, RuleReward) for component in components):
        pairs = list(zip(sequences, prompt_lengths, strict=True))
        prompts = tokenizer.batch_decode([list(s[:n]) for s, n in pairs], skip_special_tokens=True)
        responses = tokenizer.batch_decode([list(s[n:]) for s, n in pairs], skip_special_tokens=True)
    scores = {}
    for component in components:
        if isinstance(component, ModelReward):
            values = reward_scores(component.model, sequences, prompt_lengths, token_budget)
        else:
            values = _rule_scores(component, prompts, responses)
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0])
            text = tokenizer.decode(list(sequences[row]))
            raise TrainingError(
                f"reward '{component.name}' is {float(values[row])} for {text!r}, not a number that can be learnt from"
            )
        scores[component.name] = values
    return scores


def _rule_scores(rule: RuleReward, prompts: list[str], responses: list[str]) -> Tensor:
    values = list(rule.fn(prompts, responses))
    if len(values) != len(responses):
        raise TrainingError(
            f"reward '{rule.name}' returned {len(values)} values for {len(responses)} responses; return one for each"
        )
    return torch.tensor([float(value) for value in values])


def total_score(components: Sequence[Component], scores: dict[str, Tensor]) -> Tensor:
    """Σ weight · score over the components. Shape: (B,)."""
    return torch.stack([component.weight * scores[component.name] for component in components]).sum(0)
