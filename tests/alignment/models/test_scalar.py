"""Reward and value models: one head, evaluated at every token, saved in a format that loads anywhere."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignment.errors import CheckpointError
from alignment.models.scalar import (
    load_causal_model,
    load_scalar_model,
    reward_scores,
    save_model,
    scalar_model_from,
    set_normalisation,
)
from tests.alignment.ppo import world

SEQUENCES = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12], [3, 3, 4, 4]]
STARTS = [1, 2, 1, 3]


def test_scores_are_those_of_transformers_normalised(tmp_path) -> None:
    model = world.reward_model()
    save_model(model, tmp_path, world.tokenizer())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = [(plain(torch.tensor([s])).logits[0, 0].item() - 0.25) / 2.0 for s in SEQUENCES]
    for budget in (1, 8, 1000):
        assert reward_scores(load_scalar_model(tmp_path), SEQUENCES, STARTS, budget).tolist() == pytest.approx(
            expected, abs=1e-5
        )


def test_a_scalar_model_starts_at_zero_and_draws_nothing() -> None:
    policy = world.policy()
    state = torch.get_rng_state()
    model = scalar_model_from(policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert reward_scores(model, SEQUENCES, STARTS).tolist() == [0, 0, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(model.model.parameters(), policy.model.parameters(), strict=True))


def test_what_cannot_be_used_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no causal language model"):
        load_causal_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no sequence classification"):
        load_scalar_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="must be positive"):
        set_normalisation(world.reward_model(), 0.0, 0.0)


def test_weights_that_a_checkpoint_does_not_have_are_never_drawn_at_random(tmp_path) -> None:
    policy = world.policy()
    save_model(policy, tmp_path / "policy")
    save_model(scalar_model_from(policy), tmp_path / "reward")
    with pytest.raises(CheckpointError, match=r"policy has no weights for score\.weight of LlamaForSequenceClass"):
        load_scalar_model(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"reward has no weights for lm_head\.weight of LlamaForCausalLM"):
        load_causal_model(tmp_path / "reward")
