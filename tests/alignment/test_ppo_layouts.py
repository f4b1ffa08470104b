"""Layouts of the models: each learns, publishes a plain policy, and keeps in memory what it says."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.errors import ConfigError
from alignment.model import scalar_head
from alignment.ppo.models import lay_out
from alignment.ppo.rewards import ModelReward
from alignment.ppo.train import train_ppo
from tests.alignment import ppo_world as world

SHARED = {"layout": "shared_trunk", "value_coef": 0.1}


def _bytes(*models: torch.nn.Module) -> int:
    """Memory of the models together, each storage once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.parameters()}
    return sum(storages.values())


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


@pytest.mark.parametrize("options", [SHARED])
def test_a_layout_learns_and_publishes_a_plain_policy(tmp_path, options) -> None:
    policy = world.policy()
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    config = world.config(
        steps=12, batch_size=32, minibatch_size=16, epochs=4, kl_coef=0.01, missing_eos_penalty=0,
        checkpoint_every_steps=50, micro_batch_tokens=1024,
        **{"policy_learning_rate": 3e-3, "value_learning_rate": 3e-3, **options},
    )  # fmt: skip
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


def test_a_layout_with_its_own_value_model_takes_no_other() -> None:
    with pytest.raises(ConfigError, match="leave value_model out"):
        lay_out(world.config(**SHARED), world.policy(), world.reward_model(), None, [])
