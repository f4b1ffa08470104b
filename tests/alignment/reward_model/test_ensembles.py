"""Ensembles of reward models: trained separately, scored together in PPO, evaluation and validation."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from alignment.config.stages import EvaluationConfig, RewardConfig
from alignment.errors import ConfigError
from alignment.evaluation.bench import Bench
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.ensembles import Ensemble
from alignment.models.scalar import load_causal_model, load_rewards, load_scalar_model, member_scores, reward_scores
from alignment.models.tokenizer import load_tokenizer
from alignment.ppo.train import train_ppo
from alignment.records import Response, ResponseSet
from alignment.reward_model.disagreement import member_rewards
from alignment.reward_model.train import train_reward_model
from alignment.rewards.components import ModelReward, reward_components
from tests.alignment.ppo import world
from tests.alignment.tiny_world import (
    comparison,
    demonstration,
    make_base,
    prompt,
    prompt_tokens,
    response_tokens,
    write,
)

SEQUENCES, STARTS = [[3, 4, 5, 7], [6, 7, 7, 7, 1], [9, 8, 1]], [1, 2, 1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model, and comparisons by people who like the violin."""
    place = tmp_path_factory.mktemp("ensembles")
    make_base(place)
    rows = [comparison(f"Who {n}?", "Ada plays the violin.", word) for n in range(24) for word in ("A cat.", "Bo.")]
    write(place / "train.jsonl", rows[:36])
    write(place / "heldout_prompts.jsonl", rows[36:])
    write(place / "heldout_annotators.jsonl", [])
    write(place / "demonstrations.jsonl", [demonstration(f"Who {n}?", "Ada.") for n in range(6)])
    return place


def train(place, out, **options):
    config = RewardConfig(epochs=2, batch_prompts=4, learning_rate=2e-3, max_length_tokens=64, **options)
    return train_reward_model(config, out, Journal(out), seed=3, sft=place, comparisons=place, demonstrations=place)


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    return out, train(place, out, members=3, combine="worst")


def test_the_first_member_is_the_model_that_one_alone_would_be(place, made, tmp_path) -> None:
    train(place, tmp_path)
    alone, first, second = (
        load_file(path / "model.safetensors") for path in (tmp_path / "model", made[0] / "model", made[0] / "model-1")
    )
    assert all(torch.equal(alone[name], first[name]) for name in alone)
    assert any(not torch.equal(alone[name], second[name]) for name in alone)
    assert isinstance(load_rewards(made[0]), Ensemble) and not isinstance(load_rewards(tmp_path), Ensemble)
    assert not (tmp_path / "ensemble.json").exists() and not (tmp_path / "members").exists()


def test_the_ensemble_is_what_is_examined(made) -> None:
    out, figures = made
    members = [figures[f"member_{number}_accuracy"] for number in range(3)]
    assert all(0 <= accuracy <= 1 for accuracy in members) and figures["member_spread"] > 0
    ensemble = load_rewards(out)
    assert len(ensemble.models) == 3 and ensemble.combine == "worst"
    assert json.loads((out / "ensemble.json").read_text()) == {"combine": "worst", "combine_coef": 0.5, "members": 3}
    scores = member_scores(ensemble, SEQUENCES, STARTS)
    models = [load_scalar_model(out / name) for name in ("model", "model-1", "model-2")]
    alone = [reward_scores(model, SEQUENCES, STARTS) for model in models]
    torch.testing.assert_close(scores, torch.stack(alone))
    torch.testing.assert_close(reward_scores(ensemble, SEQUENCES, STARTS), scores.min(0).values)


def test_a_finished_member_is_not_trained_again(place, made, tmp_path) -> None:
    (tmp_path / "model").mkdir()
    for file in (made[0] / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    train(place, tmp_path, members=2)
    assert not any("train_accuracy" in line["values"] for line in Journal(tmp_path).read())
    assert any("train_accuracy" in line["values"] for line in Journal(tmp_path / "members" / "1").read())


def test_evaluation_scores_by_the_ensemble(place, made) -> None:
    sft, ensemble = load_causal_model(place / "model"), load_rewards(made[0])
    config = EvaluationConfig(max_new_tokens=6)
    rows, tokenizer = [prompt("Who?"), prompt("What does Ada play?")], load_tokenizer(place / "model")
    responses = [
        Bench(config, ChatFormat.of(tokenizer), sft, reward, None, 0, rows, place, place, place).responses(sft)
        for reward in (ensemble, *ensemble.models)
    ]
    for together, *members in zip(*responses, strict=True):
        assert together.reward == pytest.approx(min(member.reward for member in members), abs=1e-6)


def test_ppo_logs_the_members_spread(tmp_path) -> None:
    ensemble = Ensemble([world.reward_model(1), world.reward_model(2)], "uncertainty", 0.25)
    reward = ModelReward("people", 2.0, ensemble)
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, [reward], world.config(steps=1), out=tmp_path)
    line = world.logged(tmp_path)[0]
    assert line["reward/people/spread"] > 0
    assert line["reward"] == pytest.approx(2 * line["reward/people"], abs=1e-6)


def test_another_way_to_combine_is_another_run(tmp_path) -> None:
    models = [world.reward_model(1), world.reward_model(2)]
    for combine in ("mean", "worst"):
        reward = ModelReward("people", 1.0, Ensemble(models, combine))
        arguments = (world.policy(), world.tokenizer(), world.PROMPTS, [reward])
        if combine == "mean":
            train_ppo(*arguments, world.config(steps=1), out=tmp_path)
        else:
            with pytest.raises(ConfigError, match=r"reward people combine \(was mean 0\.5, is worst 0\.5\)"):
                train_ppo(*arguments, world.config(steps=1), out=tmp_path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs several members, and members is 1"):
        RewardConfig(combine="worst")
    with pytest.raises(ConfigError, match="an ensemble without models"):
        reward_components([ModelReward("people", 1.0, Ensemble([]))], world.tokenizer())


def test_an_ensemble_is_a_reward_as_a_model_is() -> None:
    ensemble = Ensemble([world.reward_model(1), world.reward_model(2)])
    assert reward_components(ensemble, world.tokenizer()) == [ModelReward("model", 1.0, ensemble)]


def test_members_tell_what_they_think_in_the_units_of_bradley_terry(place, made, tmp_path) -> None:
    texts = ("Ada plays the violin.", "A cat.", "Bo.")
    asked = ResponseSet(prompt=prompt("Who 3?"), responses=tuple(Response(id=text, text=text) for text in texts))
    endless = asked.model_copy(update={"prompt": prompt("Who? " * 500)})
    found = member_rewards(made[0], [asked, endless])
    assert list(found) == [asked.prompt.id]  # the other one is longer than the models' context
    rewards = torch.tensor(found[asked.prompt.id])
    ensemble, tokenizer = load_rewards(made[0]), load_tokenizer(made[0] / "model")
    start = prompt_tokens(tokenizer, asked.prompt.messages)
    for number, member in enumerate(ensemble.models):
        alone = reward_scores(member, [start + response_tokens(tokenizer, text) for text in texts], [len(start)] * 3)
        margins = rewards[number] - rewards[number, 0]
        assert torch.allclose(margins, (alone - alone[0]) * member.config.reward_scale, atol=1e-5)
    assert rewards.std(0).min() > 0  # members are apart
    train(place, tmp_path)
    with pytest.raises(ConfigError, match=r"train with reward\.members: 3"):
        member_rewards(tmp_path, [asked])
