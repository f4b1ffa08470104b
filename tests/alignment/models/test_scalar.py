"""Reward and value models: one head, evaluated at every token, saved in a format that loads anywhere."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

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


def saved(model: PreTrainedModel, directory: Path, options: dict[str, object], extra: Sequence[str] = ()) -> Path:
    """A checkpoint with other options in its config, and with more weights in its file."""
    model.save_pretrained(directory)
    config, weights = directory / "config.json", directory / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    save_file(load_file(weights) | {name: torch.ones(2) for name in extra}, weights, {"format": "pt"})
    return directory


def llama(**options: object) -> LlamaForCausalLM:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, **options))


@pytest.mark.parametrize(
    ("trained", "claimed", "extra", "unused"),
    [
        ({}, {"num_hidden_layers": 1}, [], r"model\.layers\.1\.input_layernorm\.weight, .*, …"),
        ({"attention_bias": True}, {"attention_bias": False}, [], r"model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({}, {}, ["lm_head.bias"], r"lm_head\.bias"),
        (
            {},
            {},
            ["model.layers.0.self_attn.q_proj.weight_scale"],
            r"model\.layers\.0\.self_attn\.q_proj\.weight_scale",
        ),
        ({}, {}, ["model.embed_positions.weight"], r"model\.embed_positions\.weight"),
    ],
)
def test_weights_that_the_config_has_no_place_for_are_never_dropped(tmp_path, trained, claimed, extra, unused) -> None:
    saved(llama(**trained), tmp_path, claimed, extra)
    with pytest.raises(CheckpointError, match=f"weights that the LlamaForCausalLM .* left out: {unused}"):
        load_causal_model(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_buffers_and_other_parts_beside_a_model_are_left_out(tmp_path, tied: bool) -> None:
    buffers = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.position_ids"]
    others = ["score.weight", "v_head.summary.bias", "visual.blocks.0.weight", "model.vision_tower.a", "mtp.fc.weight"]
    model = llama(tie_word_embeddings=tied)
    loaded = load_causal_model(saved(model, tmp_path, {}, [*buffers, *others]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_masks_of_old_gpt2_checkpoints_are_left_out(tmp_path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    masks = ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]
    load_causal_model(saved(model, tmp_path, {}, masks))


def test_a_reward_model_with_a_language_models_head_is_loaded(tmp_path) -> None:
    reward = scalar_model_from(llama())
    load_scalar_model(saved(reward, tmp_path / "a", {}, ["lm_head.weight"]))
    with pytest.raises(CheckpointError, match=r"left out: model\.layers\.1"):
        load_scalar_model(saved(reward, tmp_path / "b", {"num_hidden_layers": 1}))
