"""Half precision and gradient checkpointing: memory is saved, and exact quantities stay exact."""

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from alignment.errors import ConfigError
from alignment.models.logprobs import response_logprobs
from alignment.models.recomputation import recompute_layers
from alignment.ppo import memory
from alignment.ppo.episodes import micro_batches
from alignment.ppo.learner import Learner
from alignment.ppo.models import lay_out
from alignment.ppo.rollout import sample_episodes, score_episodes
from alignment.ppo.train import train_ppo
from alignment.rewards.components import ModelReward
from tests.alignment.ppo import world
from tests.alignment.ppo.world import PROMPTS

LAYOUTS = ["separate", "shared_trunk", "lora"]


@pytest.fixture
def emulated(monkeypatch) -> None:
    """Slow here, but right."""
    monkeypatch.setattr(memory, "has_bfloat16", lambda device: True)


def _learner(config, policy=None) -> Learner:
    models = lay_out(config, policy or world.policy(), None, None, [])
    return Learner.of(models.policy, models.value_model, config)


def _gradients(learner: Learner, config) -> tuple[dict[str, int], list[torch.Tensor], int]:
    """Calls of a layer's feed-forward in the forward and in the backward, gradients, and bytes kept between them."""
    calls = {"now": 0}
    kept = {}
    for layer in learner.policy.base_model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.update(now=calls["now"] + 1))
    weights = {weight.untyped_storage().data_ptr() for weight in learner.policy.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    episodes = sample_episodes(learner.policy, PROMPTS[:8], config, {world.EOS}, torch.rand(8, config.max_new_tokens))
    calls["now"] = 0
    (batch,) = micro_batches(episodes, config, torch.device("cpu"))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = response_logprobs(learner.policy, batch).sum()
    counted = {"forward": calls["now"]}
    loss.backward()
    counted["backward"] = calls["now"] - counted["forward"]
    gradients = [w.grad for w in learner.policy_weights.values() if w.grad is not None]
    return counted, gradients, sum(kept.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_are_recomputed_in_the_backward_pass_and_give_the_same_gradients(layout) -> None:
    plain, recomputed = (
        world.config(layout=layout, micro_batch_tokens=1024, gradient_checkpointing=on) for on in (False, True)
    )
    counted, gradients, kept = _gradients(_learner(plain), plain)
    assert counted == {"forward": 2, "backward": 0}
    counted_again, gradients_again, kept_less = _gradients(_learner(recomputed), recomputed)
    assert counted_again == {"forward": 2, "backward": 2}
    assert len(gradients) > 5 and all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert kept_less < 0.35 * kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_that_recomputes_is_the_same_run(tmp_path, layout) -> None:
    weights = []
    for on in (False, True):
        options = world.config(layout=layout, steps=2, gradient_checkpointing=on)
        out = tmp_path / str(on)
        result = train_ppo(world.policy(), world.tokenizer(), PROMPTS, world.count_w7, options, out=out)
        weights.append(load_file(result.model_dir / "model.safetensors"))
    assert world.logged(tmp_path / "False") == world.logged(tmp_path / "True")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_bfloat16_keeps_weights_optimizer_and_losses_in_float32(emulated, layout, given) -> None:
    config = world.config(layout=layout, bfloat16=True, steps=1)
    policy = world.policy().to(given)
    reward = [ModelReward("model", 1.0, world.reward_model())]
    models = lay_out(config, policy, None, None, reward)
    learner = Learner.of(models.policy, models.value_model, config)
    uniforms = torch.rand(8, config.max_new_tokens)
    episodes = sample_episodes(learner.policy, PROMPTS[:8], config, {world.EOS}, uniforms)
    products = []
    layer = models.policy.base_model.layers[0].mlp
    layer.register_forward_hook(lambda module, given, output: products.append(output.dtype))
    scored = score_episodes(
        episodes, reward, models.reference, learner.policy, learner.value_model, world.tokenizer(), config
    )
    assert set(products) == {torch.bfloat16}
    assert len(products) == len(micro_batches(episodes, config, torch.device("cpu")))  # one forward of the policy
    with memory.computing(config, torch.device("cpu")):
        loss = response_logprobs(learner.policy, micro_batches(episodes, config, torch.device("cpu"))[0])
    loss.sum().backward()
    learner.policy_optimizer.step()
    weights = [*learner.policy_weights.values(), *learner.value_weights.values()]
    states = [value for state in learner.policy_optimizer.state.values() for value in state.values()]
    tensors = [*weights, *states, loss, episodes.logprobs, scored.values, scored.reference_logprobs]
    assert all(tensor.dtype == torch.float32 for tensor in tensors) and states
    assert models.reference.dtype == given


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_in_bfloat16(emulated, tmp_path, layout) -> None:
    """At the start policy and reference agree to the bit, and what is learnt on is what the update computes."""
    config = world.config(layout=layout, bfloat16=True, steps=2, gradient_checkpointing=True)
    result = train_ppo(world.policy(), world.tokenizer(), PROMPTS, world.reward_model(), config, out=tmp_path)
    log = world.logged(tmp_path)
    assert log[0]["kl"] == 0 and log[1]["kl"] != 0
    assert all(line["sampling_mismatch"] < 1e-5 for line in log)
    assert all(w.dtype == torch.float32 for w in load_file(result.model_dir / "model.safetensors").values())


def test_lora_over_a_base_in_bfloat16_publishes_what_was_learnt(tmp_path) -> None:
    policy = world.policy(initializer_range=0.2).to(torch.bfloat16)
    config = world.config(layout="lora", steps=1)
    result = train_ppo(policy, world.tokenizer(), PROMPTS, world.count_w7, config, out=tmp_path)
    start = load_file(result.snapshots[0].path / "model.safetensors")
    end = load_file(result.model_dir / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert end[name].dtype == torch.float32 and torch.equal(start[name], policy.state_dict()[name].float())
    moved = (end[name] - start[name]).abs().mean()
    assert 0 < moved < 1e-2 and torch.equal(start["model.embed_tokens.weight"], end["model.embed_tokens.weight"])


def test_bfloat16_where_it_cannot_work_is_refused(monkeypatch) -> None:
    config = world.config(bfloat16=True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    with pytest.raises(ConfigError, match=r"cpu has no bfloat16 arithmetic .* set bfloat16 to false"):
        lay_out(config, world.policy(), None, None, [])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True})
    lay_out(config, world.policy(), None, None, [])
    with pytest.raises(ConfigError, match="float64, which autocast does not convert"):
        lay_out(config, world.policy().double(), None, None, [])


def test_layers_that_cannot_be_recomputed_are_refused() -> None:
    model = world.policy()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ConfigError, match="gradient_checkpointing to false"):
        recompute_layers(model)
