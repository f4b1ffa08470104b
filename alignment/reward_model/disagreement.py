"""Rewards of each member of an ensemble, whose disagreement selects the prompts to label."""

from collections.abc import Sequence
from pathlib import Path

from alignment.errors import ConfigError
from alignment.models.architecture import longest_sequence
from alignment.models.ensembles import Ensemble
from alignment.models.importing import load_tokenizer
from alignment.models.scalar import load_rewards, member_scores
from alignment.models.tokenizer import prompt_tokens, response_tokens
from alignment.records import ResponseSet

Scores = list[list[float]]


def member_rewards(reward: Path, sets: Sequence[ResponseSet]) -> dict[str, Scores]:
    """The reward of every response by every member, by prompt id, in Bradley-Terry's units.

    Shape of each: (members, responses).
    `reward` is the output of the stage `reward`. Prompts whose longest response does not fit into the models' context
    are dropped. Raises ConfigError for a single reward model.
    """
    ensemble = load_rewards(reward)
    if not isinstance(ensemble, Ensemble):
        raise ConfigError(
            f"{reward} has a single reward model, but disagreement needs an ensemble: train with reward.members: 3"
        )
    tokenizer = load_tokenizer(reward / "model")
    context = longest_sequence(*ensemble.models)
    rewards: dict[str, Scores] = {}
    for responses in sets:
        prompt = prompt_tokens(tokenizer, responses.prompt.messages)
        sequences = [prompt + response_tokens(tokenizer, response.text) for response in responses.responses]
        if max(map(len, sequences)) <= context:
            scores = member_scores(ensemble, sequences, [len(prompt)] * len(sequences)).tolist()
            scales = [float(getattr(model.config, "reward_scale", 1.0)) for model in ensemble.models]
            rewards[responses.prompt.id] = [[scale * s for s in row] for scale, row in zip(scales, scores, strict=True)]
    return rewards
