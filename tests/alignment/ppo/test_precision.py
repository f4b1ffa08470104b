"""Whatever precision the models come in, training happens on float32 weights."""

import pytest
import torch
from safetensors.torch import load_file

from alignment.models.scalar import load_causal_model, scalar_model_from
from alignment.ppo.models import lay_out
from alignment.ppo.train import train_ppo
from tests.alignment.ppo import world

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("layout", ["separate", "shared_trunk"])
@pytest.mark.parametrize("dtype", HALF)
def test_a_policy_in_half_precision_is_trained_as_its_float32_copy_is(tmp_path, dtype, layout) -> None:
    half = world.policy().to(dtype)
    single = world.policy().to(dtype).float()
    config = world.config(steps=2, layout=layout, policy_learning_rate=1e-6)
    for name, policy in (("half", half), ("single", single)):
        result = train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path / name)
        assert result.metrics["kl"] == pytest.approx(0, abs=1e-2)
    trained, same = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("half", "single"))
    assert all(torch.equal(trained[name], same[name]) and trained[name].dtype == torch.float32 for name in same)
    assert load_causal_model(tmp_path / "half" / "model").config.dtype == torch.float32
    before = dict(single.named_parameters())
    change = torch.cat([(trained[name] - before[name].detach()).flatten() for name in before if name in trained])
    assert float((change != 0).double().mean()) > 0.9, "small updates are lost"
    assert float(change.abs().max()) < 1e-4
    assert half.dtype == dtype, "the argument's weights are not changed"


def test_kl_starts_at_zero_in_half_precision(tmp_path) -> None:
    policy = world.policy(initializer_range=0.5).to(torch.float16)
    config = world.config(steps=1)
    train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)
    assert world.logged(tmp_path)[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_frozen_models_keep_their_precision_and_trained_ones_are_in_float32() -> None:
    policy, reference = world.policy().to(torch.bfloat16), world.policy().to(torch.bfloat16)
    value_model = scalar_model_from(world.policy()).to(torch.bfloat16)
    models = lay_out(world.config(), policy, value_model, reference, [])
    assert models.reference is reference and reference.dtype == torch.bfloat16
    assert {w.dtype for m in (models.policy, models.value_model) for w in m.parameters()} == {torch.float32}
    assert value_model.dtype == torch.bfloat16


def test_a_single_weight_in_half_precision_is_enough() -> None:
    policy = world.policy()
    policy.lm_head.to(torch.bfloat16)
    assert policy.dtype == torch.float32
    models = lay_out(world.config(), policy, None, None, [])
    assert {w.dtype for w in models.policy.parameters()} == {torch.float32}


def test_float64_stays() -> None:
    models = lay_out(world.config(), world.policy().double(), None, None, [])
    assert models.policy.dtype == models.value_model.dtype == torch.float64


def test_an_adapter_over_a_base_in_half_precision_is_in_float32() -> None:
    policy = world.policy().to(torch.bfloat16)
    models = lay_out(world.config(layout="lora"), policy, None, None, [])
    kinds = {".lora_" in name: weight.dtype for name, weight in models.policy.named_parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32}
