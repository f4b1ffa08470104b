"""Rewards of each member of an ensemble, whose disagreement selects the prompts to label."""

from collections.abc import Sequence
from pathlib import Path

from alignment.errors import ConfigError, UnfitRowError
from alignment.models.architecture import longest_sequence
from alignment.models.chat import load_chat
from alignment.models.encoding import encode_responses
from alignment.models.ensembles import Ensemble
from alignment.models.scalar import load_rewards, member_scores
from alignment.records import ResponseSet

Scores = list[list[float]]


def member_rewards(reward: Path, sets: Sequence[ResponseSet]) -> dict[str, Scores]:
    """The reward of every response by every member, by prompt id, in Bradley-Terry's units.

    Shape of each: (members, responses).
    `reward` is the output of the stage `reward`. Prompts that the model cannot read, or whose longest response does not
    fit into its context, are dropped. Raises ConfigError for a single reward model.
    """
    ensemble = load_rewards(reward)
    if not isinstance(ensemble, Ensemble):
        raise ConfigError(
            f"{reward} has a single reward model, but disagreement needs an ensemble: train with reward.members: 3"
        )
    chat = load_chat(reward / "model")
    context = longest_sequence(*ensemble.models)
    rewards: dict[str, Scores] = {}
    for responses in sets:
        try:
            sequences, prompt_length = encode_responses(chat, responses)
        except UnfitRowError:
            continue
        if max(map(len, sequences)) <= context:
            scores = member_scores(ensemble, sequences, [prompt_length] * len(sequences)).tolist()
            scales = [float(getattr(model.config, "reward_scale", 1.0)) for model in ensemble.models]
            rewards[responses.prompt.id] = [[scale * s for s in row] for scale, row in zip(scales, scores, strict=True)]
    return rewards
