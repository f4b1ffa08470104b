"""Layouts of the models: each learns, publishes a plain policy, and keeps the documented models in memory."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignment.errors import ConfigError
from alignment.models.ensembles import Ensemble
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.lora import adapter_weights, add_adapter, has_adapter
from alignment.models.scalar import reward_scores, scalar_head
from alignment.ppo.learner import Learner
from alignment.ppo.models import lay_out
from alignment.ppo.train import train_ppo
from alignment.rewards.components import ModelReward
from tests.alignment.models.test_lora import reward_adapter
from tests.alignment.ppo import world

SHARED = {"layout": "shared_trunk", "value_coef": 0.1}
LORA = {"layout": "lora", "lora_rank": 8, "lora_alpha": 16}


def _bytes(*models: torch.nn.Module) -> int:
    """Memory of the models together, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.parameters()}
    return sum(storages.values())


def _scores(model: PreTrainedModel) -> torch.Tensor:
    return reward_scores(model, world.PROMPTS, [len(prompt) for prompt in world.PROMPTS])


def test_shared_trunk_is_one_trunk() -> None:
    policy, reward = world.policy(), ModelReward("model", 1.0, world.reward_model())
    models = lay_out(world.config(**SHARED), policy, None, None, [reward])
    head = scalar_head(models.value_model).weight
    assert _bytes(models.policy, models.value_model) == _bytes(policy) + 32 * 4
    assert models.reference is policy and models.policy is not policy
    assert torch.equal(head, scalar_head(reward.model).weight) and head is not scalar_head(reward.model).weight
    assert (models.value_model.config.reward_bias, models.value_model.config.reward_scale) == (0.25, 2.0)
    other = lay_out(world.config(**SHARED), world.policy(hidden_size=16), None, None, [reward])
    assert not scalar_head(other.value_model).weight.any()


def test_lora_is_one_base_with_adapters() -> None:
    policy = world.policy()
    reward = ModelReward("model", 1.0, reward_adapter(world.policy()))
    models = lay_out(world.config(**LORA), policy, None, None, [reward])
    scorer = models.components[0].model
    own = [sum(w.numel() for w in adapter_weights(m).values()) for m in (models.policy, models.value_model, scorer)]
    assert _bytes(policy, models.policy, models.reference, models.value_model, scorer) == _bytes(policy) + 4 * sum(own)
    assert own[1] == own[2] < own[0] < sum(w.numel() for w in policy.parameters()) / 2
    assert torch.equal(_scores(scorer), _scores(reward.model))
    assert torch.equal(_scores(models.value_model), _scores(scorer))
    weights = (adapter_weights(models.value_model)["score.weight"], adapter_weights(scorer)["score.weight"])
    assert weights[0].data_ptr() != weights[1].data_ptr()


def test_in_lora_every_adapter_of_an_ensemble_shares_the_base() -> None:
    members = [world.reward_model(), *(reward_adapter(world.policy()) for _ in range(2))]
    reward = ModelReward("people", 1.0, Ensemble(members))
    models = lay_out(world.config(layout="lora"), world.policy(), None, None, [reward])
    (ensemble,) = models.components
    whole, *adapters = ensemble.models
    base = models.reference.get_input_embeddings().weight.data_ptr()
    assert [model.get_input_embeddings().weight.data_ptr() == base for model in ensemble.models] == [False, True, True]
    assert whole is reward.models[0]
    weights = (adapter_weights(models.value_model)["score.weight"], adapter_weights(adapters[0])["score.weight"])
    assert torch.equal(*weights)


def test_in_lora_the_reference_is_the_starting_policy() -> None:
    policy = world.policy().eval()
    models = lay_out(world.config(**LORA), policy, None, None, [ModelReward("model", 1.0, world.reward_model())])
    learner = Learner.of(models.policy, models.value_model, world.config(**LORA))
    batches = scoring_batches(world.PROMPTS, [1] * len(world.PROMPTS), 64)
    start = [response_logprobs(policy, batch).detach() for batch in batches]
    assert all(torch.equal(response_logprobs(models.policy, batch), s) for batch, s in zip(batches, start, strict=True))
    assert all(".lora_" in name for name in learner.policy_weights)
    with torch.no_grad():
        for weight in learner.policy_weights.values():
            weight.normal_()
    assert not torch.equal(response_logprobs(models.policy, batches[0]), start[0])
    found = [response_logprobs(models.reference, batch) for batch in batches]
    assert all(torch.equal(f, s) for f, s in zip(found, start, strict=True))


@pytest.mark.parametrize("options", [SHARED, LORA | {"policy_learning_rate": 1e-2}], ids=["shared_trunk", "lora"])
def test_a_layout_learns_and_publishes_a_plain_policy(tmp_path, options) -> None:
    policy = world.policy(initializer_range=0.2)  # a frozen output head has to say something
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    config = world.config(
        steps=12,
        batch_size=32,
        minibatch_size=16,
        epochs=4,
        kl_coef=0.01,
        missing_eos_penalty=0,
        checkpoint_every_steps=50,
        micro_batch_tokens=1024,
        **{"policy_learning_rate": 3e-3, "value_learning_rate": 3e-3, **options},
    )
    result = train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)
    log = world.logged(tmp_path)
    assert sum(line["reward"] for line in log[-3:]) > 3 * max(1.0, sum(line["reward"] for line in log[:3]))
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.5
    assert all(line["sampling_mismatch"] < 1e-5 for line in log)
    for place in (result.model_dir, result.snapshots[0].path):
        published, info = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        assert type(published) is type(policy) and not any(info.values())
        assert published.state_dict().keys() == before.keys()
    torch.testing.assert_close(dict(policy.state_dict()), before, rtol=0, atol=0)


def test_a_warming_value_trains_the_head_alone(tmp_path) -> None:
    options = world.config(steps=2, value_warmup_steps=1, snapshot_every_steps=1, **SHARED)
    result = train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    start, warm, end = (
        AutoModelForCausalLM.from_pretrained(snapshot.path).state_dict() for snapshot in result.snapshots
    )
    assert all(torch.equal(start[name], warm[name]) for name in start)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert world.logged(tmp_path)[0]["value_grad_norm"] > 0


def test_what_a_layout_cannot_take_is_refused() -> None:
    for layout in (SHARED, LORA):
        with pytest.raises(ConfigError, match="omit value_model"):
            lay_out(world.config(**layout), world.policy(), world.reward_model(), None, [])
    with pytest.raises(ConfigError, match="omit reference"):
        lay_out(world.config(**LORA), world.policy(), None, world.policy(), [])
    policy = world.policy()
    add_adapter(policy, 2, 2)
    with pytest.raises(ConfigError, match=r"merged\(policy\)"):
        lay_out(world.config(), policy, None, None, [])


def test_a_reward_adapter_serves_the_other_layouts_too() -> None:
    reward = ModelReward("model", 1.0, reward_adapter(world.policy()))
    models = lay_out(world.config(), world.policy(), None, None, [reward])
    assert not has_adapter(models.value_model)
    expected = _scores(reward.model)
    torch.testing.assert_close(_scores(models.value_model), expected, rtol=1e-5, atol=1e-5)
