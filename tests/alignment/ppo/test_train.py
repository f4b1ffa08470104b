"""The trainer end to end: it learns, reaches the theoretical optimum, stops, and does not modify its arguments."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment import ppo
from alignment.ppo.train import train_ppo
from alignment.rewards.components import ModelReward, RuleReward
from tests.alignment.ppo import world

pytestmark = pytest.mark.slow


def _weights(path):
    return load_file(path / "model.safetensors")


def test_reward_rises_and_arguments_stay(tmp_path) -> None:
    policy = world.policy()
    before = copy.deepcopy(policy.state_dict())
    options = world.config(
        steps=12,
        batch_size=32,
        minibatch_size=16,
        epochs=4,
        kl_coef=0.01,
        missing_eos_penalty=0,
        policy_learning_rate=3e-3,
        value_learning_rate=3e-3,
        checkpoint_every_steps=50,
        micro_batch_tokens=1024,
    )
    result = train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    log = world.logged(tmp_path)
    assert sum(line["reward"] for line in log[-3:]) > 3 * max(1.0, sum(line["reward"] for line in log[:3]))
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5) and log[-1]["kl"] > 0.5
    assert all(line["sampling_mismatch"] < 1e-5 for line in log)
    assert result.metrics["reward"] == log[-1]["reward"] and result.policy_step == 12
    torch.testing.assert_close(dict(policy.state_dict()), dict(before), rtol=0, atol=0)
    assert [snapshot.step for snapshot in result.snapshots] == [0, 2, 4, 6, 8, 10, 12]
    torch.testing.assert_close(_weights(result.snapshots[-1].path), _weights(result.model_dir), rtol=0, atol=0)
    assert result.snapshots[1].kl == pytest.approx(log[2]["kl"])
    model = AutoModelForCausalLM.from_pretrained(result.model_dir)
    assert model.config.vocab_size == world.WORDS
    assert AutoTokenizer.from_pretrained(result.model_dir)("w7")["input_ids"] == [7]


def test_one_token_responses_end_at_the_tilted_reference(tmp_path) -> None:
    """π*(a) ∝ π_ref(a) exp(r(a)/β); samples and Adam leave some noise, so the tolerance is on the total variation."""
    policy = world.policy(initializer_range=0.3, num_hidden_layers=1)
    policy.eval()
    beta, prompt = 1.0, [5, 6]
    with torch.no_grad():
        reference = policy(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    bonus = torch.linspace(-1.5, 1.5, world.WORDS)

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        return [float(bonus[int(text[1:]) if text else world.EOS]) for text in responses]

    bonus[world.PAD] = bonus[world.EOS]  # both are empty as text
    options = world.config(
        steps=30,
        batch_size=512,
        minibatch_size=512,
        epochs=4,
        max_new_tokens=1,
        kl_coef=beta,
        missing_eos_penalty=0,
        schedule="linear",
        policy_learning_rate=5e-3,
        value_learning_rate=5e-3,
        generation_batch_size=512,
        micro_batch_tokens=4096,
        checkpoint_every_steps=100,
        snapshot_every_steps=100,
    )
    result = train_ppo(policy, world.tokenizer(), [prompt], reward, options, out=tmp_path)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(result.model_dir)(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    expected = reference * torch.exp(bonus / beta)
    expected /= expected.sum()
    moved = 0.5 * (expected - reference).abs().sum()
    assert 0.5 * (found - expected).abs().sum() < 0.06 and moved > 0.25


def test_reward_parts_are_weighted_and_logged_by_name(tmp_path) -> None:
    tokenizer = world.tokenizer()
    reward = [ModelReward("people", 0.5, world.reward_model()), RuleReward("w7", 2.0, world.count_w7)]
    train_ppo(world.policy(), tokenizer, world.PROMPTS, reward, world.config(steps=1), out=tmp_path)
    line = world.logged(tmp_path)[0]
    assert line["reward"] == pytest.approx(0.5 * line["reward/people"] + 2 * line["reward/w7"], abs=1e-6)
    assert line["score"] == pytest.approx(line["reward"] - line["missing_eos"], abs=1e-6)


def test_value_warmup_trains_the_value_model_alone(tmp_path) -> None:
    options = world.config(steps=2, value_warmup_steps=1, snapshot_every_steps=1)
    result = train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    start, warm, end = (_weights(snapshot.path) for snapshot in result.snapshots)
    assert all(torch.equal(start[name], warm[name]) for name in start)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    first, second = world.logged(tmp_path)
    assert "policy_loss" not in first and first["policy_learning_rate"] == 0 and first["value_loss"] > 0
    assert second["policy_learning_rate"] > 0


def test_early_stop_falls_back_to_the_last_good_snapshot(tmp_path) -> None:
    options = world.config(
        steps=30, kl_coef=0, policy_learning_rate=1e-2, snapshot_every_steps=1, early_stop_kl=2.0, missing_eos_penalty=0
    )
    result = train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    assert result.stopped_early and result.steps < 30
    good = [snapshot for snapshot in result.snapshots if snapshot.kl is not None and snapshot.kl <= 2.0]
    assert result.policy_step == good[-1].step < result.steps
    torch.testing.assert_close(_weights(good[-1].path), _weights(result.model_dir), rtol=0, atol=0)
    assert world.logged(tmp_path)[-1]["kl"] > 2.0
    again = train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    assert again.policy_step == result.policy_step and again.steps == result.steps


def test_target_kl_ends_an_update(tmp_path) -> None:
    options = world.config(steps=2, epochs=8, policy_learning_rate=1e-2, update_target_kl=1e-3)
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    for line in world.logged(tmp_path):
        assert line["update_stopped"] == 1 and line["optimizer_steps"] < 16


def test_average_of_weights_is_published(tmp_path) -> None:
    plain = train_ppo(
        world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, world.config(), out=tmp_path / "plain"
    )
    options = world.config(ema_decay=0.9)
    mean = train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path / "mean")
    assert world.logged(tmp_path / "plain") == world.logged(tmp_path / "mean")  # averaging changes nothing of the run
    start, last, average = (_weights(p) for p in (plain.snapshots[0].path, plain.model_dir, mean.model_dir))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (average[name] - start[name]).norm() < (last[name] - start[name]).norm()


def test_pretraining_gradients_lower_the_loss_on_their_text(tmp_path) -> None:
    text = [[3, 4, 5, 6, 7, 8, 9, 10]] * 8
    options = world.config(steps=6, ptx_coef=5.0, ptx_batch_size=8, policy_learning_rate=3e-3)
    train_ppo(
        world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, ptx_sequences=text, out=tmp_path
    )
    losses = [line["ptx_loss"] for line in world.logged(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]


def test_adaptive_coefficient_follows_the_kl(tmp_path) -> None:
    options = world.config(steps=5, kl_target=0.5, kl_coef=0.1, policy_learning_rate=1e-2)
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, options, out=tmp_path)
    log = world.logged(tmp_path)
    for line, after in itertools.pairwise(log):
        error = min(max((line["kl"] - 0.5) / 0.5, -0.2), 0.2)
        assert after["kl_coef"] == pytest.approx(line["kl_coef"] * (1 + 0.1 * error), rel=1e-9)


def test_half_precision_recomputes_what_it_sampled(tmp_path) -> None:
    policy, config = world.policy().to(torch.bfloat16), world.config(steps=1, layout="lora")
    train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)
    assert world.logged(tmp_path)[0]["sampling_mismatch"] < 1e-5


def test_the_public_names_are_there() -> None:
    assert {getattr(ppo, name).__name__ for name in ppo.__all__} == {*ppo.__all__}
