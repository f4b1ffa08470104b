"""Adapters over one base: their outputs, the shared base, and files that peft can read."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from alignment.errors import CheckpointError, ConfigError
from alignment.models import lora, reward_adapters
from alignment.models.likelihood import add_likelihood
from alignment.models.scalar import reward_scores, save_model, scalar_head, scalar_model_from, set_normalisation
from tests.alignment.ppo import world

SEQUENCES = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 1]]
IDS = torch.tensor([[3, 4, 5, 6, 7, 2]])


def gpt2() -> PreTrainedModel:
    """Another family: its linear layers are transposed, and its output head is its embedding."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()


def noisy(model: PreTrainedModel, seed: int = 3) -> PreTrainedModel:
    """The model with adapter and head away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for weight in lora.adapter_weights(model).values():
        nn.init.normal_(weight, std=0.3, generator=generator)
    return model


def reward_adapter(base: PreTrainedModel) -> PreTrainedModel:
    """A reward model as an adapter that says something."""
    model = noisy(reward_adapters.scalar_adapter_over(base, 4, 8))
    set_normalisation(model, 0.25, 2.0)
    return model


@pytest.mark.parametrize("make", [world.policy, gpt2])
def test_a_new_adapter_changes_nothing_and_a_merged_one_computes_the_same(make) -> None:
    base = make().double().eval()
    before = base(IDS).logits
    model = lora.over_base(base)
    lora.add_adapter(model, 4, 8)
    assert torch.equal(model(IDS).logits, before)
    noisy(model)
    plain = lora.merged(model)
    assert type(plain) is type(base) and plain.state_dict().keys() == base.state_dict().keys()
    assert (plain(IDS).logits - before).abs().max() > 0.1
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-6, atol=1e-6)
    assert torch.equal(base(IDS).logits, before)


def test_all_linear_layers_of_the_trunk_or_those_that_are_named() -> None:
    model = lora.over_base(world.policy())
    lora.add_adapter(model, 4, 8)
    assert len(lora.adapter_weights(model)) == 2 * 7 * 2 and not isinstance(model.lm_head, lora.LoraLayer)
    some = lora.over_base(world.policy())
    lora.add_adapter(some, 4, 8, ["q_proj", "v_proj"])
    assert len(lora.adapter_weights(some)) == 2 * 2 * 2
    for wrong in (["q_proj", "query"], ["lm_head"], []):
        with pytest.raises(ConfigError, match=r"which has \['down_proj', 'gate_proj'"):
            lora.add_adapter(lora.over_base(world.policy()), 4, 8, wrong)


def test_a_reward_adapter_scores_as_the_merged_model(tmp_path) -> None:
    base = world.policy()
    model = reward_adapter(base)
    expected = reward_scores(model, SEQUENCES, [1, 1, 2])
    save_model(lora.merged(model), tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not lora.has_adapter(plain)
    torch.testing.assert_close(reward_scores(plain, SEQUENCES, [1, 1, 2]), expected, rtol=1e-5, atol=1e-5)
    assert len(set(expected.tolist())) == 3


def test_a_reward_adapter_is_saved_for_us_and_for_peft(tmp_path) -> None:
    base = world.policy()
    model = reward_adapter(base)
    expected = reward_scores(model, SEQUENCES, [1, 1, 2])
    reward_adapters.save_scalar_adapter(model, tmp_path, "where/the/base/is")
    loaded = reward_adapters.load_scalar_adapter(tmp_path, base)
    assert torch.equal(reward_scores(loaded, SEQUENCES, [1, 1, 2]), expected)
    assert loaded.base_model.embed_tokens.weight.data_ptr() == base.get_input_embeddings().weight.data_ptr()
    theirs = PeftModel.from_pretrained(scalar_model_from(base), tmp_path)
    raw = torch.stack([theirs(torch.tensor([sequence])).logits[0, 0] for sequence in SEQUENCES])
    torch.testing.assert_close((raw.detach() - 0.25) / 2.0, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_peft_saved_is_read(tmp_path) -> None:
    base = world.policy()
    config = LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"])
    theirs = get_peft_model(scalar_model_from(base), config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(weight.data, std=0.3)
    theirs.save_pretrained(tmp_path)
    raw = torch.stack([theirs(torch.tensor([sequence])).logits[0, 0] for sequence in SEQUENCES])
    found = reward_scores(reward_adapters.load_scalar_adapter(tmp_path, base), SEQUENCES, [1, 1, 2])
    torch.testing.assert_close(found, raw.detach(), rtol=1e-5, atol=1e-5)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no LoRA adapter"):
        reward_adapters.load_scalar_adapter(tmp_path, world.policy())
    with pytest.raises(CheckpointError, match="has no LoRA adapter"):
        reward_adapters.save_scalar_adapter(world.reward_model(), tmp_path)
    reward_adapters.save_scalar_adapter(reward_adapter(world.policy()), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit LlamaForCausalLM"):
        reward_adapters.load_scalar_adapter(tmp_path, world.policy(hidden_size=16))
    with pytest.raises(CheckpointError, match="does not fit GPT2LMHeadModel"):
        reward_adapters.load_scalar_adapter(tmp_path, gpt2())


def test_an_adapter_moves_to_an_equal_base_and_to_no_other() -> None:
    model = reward_adapter(world.policy())
    base = world.policy()
    moved = lora.rebased(model, base)
    assert moved is not None and torch.equal(
        reward_scores(moved, SEQUENCES, [1, 1, 2]), reward_scores(model, SEQUENCES, [1, 1, 2])
    )
    memory = {weight.data_ptr() for weight in base.parameters()}
    own = {name for name, weight in moved.named_parameters() if weight.data_ptr() not in memory}
    assert own == set(lora.adapter_weights(moved)) and "score.weight" in own
    assert scalar_head(moved).weight.data_ptr() != scalar_head(model).weight.data_ptr()
    assert lora.rebased(model, world.policy(seed=5)) is None


def test_a_likelihood_term_comes_along_and_shares_the_language_head(tmp_path) -> None:
    base = world.policy()
    model = reward_adapter(base)
    add_likelihood(model, base.get_output_embeddings())
    nn.init.constant_(model.likelihood.coef.bias, 0.5)
    nn.init.constant_(model.likelihood.coef.weight, 0.1)
    expected = reward_scores(model, SEQUENCES, [1, 1, 2])
    assert not torch.equal(expected, reward_scores(reward_adapter(base), SEQUENCES, [1, 1, 2]))
    plain = lora.merged(model)
    torch.testing.assert_close(reward_scores(plain, SEQUENCES, [1, 1, 2]), expected, rtol=1e-5, atol=1e-5)
    reward_adapters.save_scalar_adapter(model, tmp_path)
    loaded = reward_adapters.load_scalar_adapter(tmp_path, base)
    assert torch.equal(reward_scores(loaded, SEQUENCES, [1, 1, 2]), expected)
    assert loaded.likelihood.language_head.weight.data_ptr() == base.lm_head.weight.data_ptr()
