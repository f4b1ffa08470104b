"""Generation: greedy, seeded, nucleus sampling, and identical for every architecture."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from alignment.errors import ConfigError
from alignment.models import generation
from alignment.models.generation import draw, generate, nucleus
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.static_decoding import StaticStep
from tests.alignment.ppo import world


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=20, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def _gemma2() -> PreTrainedModel:
    """Soft-capped logits and sliding windows: what a shortcut around the model's forward would miss."""
    config = Gemma2Config(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        final_logit_softcapping=0.5,
        sliding_window=4,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [world.policy, _gpt2, _gemma2])
def test_sampled_logprobs_are_those_of_a_full_forward(make) -> None:
    torch.manual_seed(0)
    model = make().eval()
    samples = generate(
        model,
        world.PROMPTS,
        max_new_tokens=8,
        eos_token_ids={1, 4},
        temperature=0.8,
        batch_size=10,
        generator=torch.Generator().manual_seed(0),
    )
    sequences = [[*prompt, *sample.tokens] for prompt, sample in zip(world.PROMPTS, samples, strict=True)]
    for batch in scoring_batches(sequences, [len(prompt) for prompt in world.PROMPTS], 64):
        with torch.no_grad():
            found = response_logprobs(model, batch, 0.8)
        sampled = [samples[i].logprobs[t] for i, t in zip(batch.sequence.tolist(), batch.time.tolist(), strict=True)]
        torch.testing.assert_close(found, torch.tensor(sampled), rtol=0, atol=1e-5)
    for i, sequence in enumerate(sequences[:4]):
        with torch.no_grad():
            logs = (model(torch.tensor([sequence])).logits[0] / 0.8).log_softmax(-1)
        n = len(world.PROMPTS[i])
        expected = [logs[t - 1, sequence[t]].item() for t in range(n, len(sequence))]
        assert samples[i].logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [world.policy, _gpt2, _gemma2])
def test_gradients_are_those_of_a_full_forward(make) -> None:
    """Places that are not read have no part in any gradient. (Norms are in single precision, hence the tolerance.)"""
    torch.manual_seed(0)
    model = make().double().eval()
    sequences, prompts = [[3, 5, 7, 9, 4, 6, 8], [4, 4, 2], [9, 8, 7, 6, 5, 4]], [4, 1, 2]
    for batch in scoring_batches(sequences, prompts, 24):
        response_logprobs(model, batch).square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for sequence, prompt in zip(sequences, prompts, strict=True):
        logs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        sum(logs[t - 1, sequence[t]] ** 2 for t in range(prompt, len(sequence))).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()], rtol=1e-5, atol=1e-7)


def test_greedy_is_what_transformers_generates() -> None:
    model = world.policy(initializer_range=0.3).eval()
    samples = generate(model, world.PROMPTS, max_new_tokens=8, eos_token_ids={1}, temperature=0, batch_size=7)
    for prompt, sample in zip(world.PROMPTS[:6], samples, strict=False):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert sample.tokens == expected.tolist()


@pytest.mark.parametrize("make", [world.policy, _gpt2, _gemma2])
def test_a_cache_of_fixed_size_gives_the_same_samples(make, monkeypatch) -> None:
    """What a GPU records as a graph, on the CPU; an architecture with sliding windows keeps the growing cache."""
    model = make().eval()
    uniforms = torch.rand(24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 20, "eos_token_ids": {1, 4}, "uniforms": uniforms, "batch_size": 12}
    growing = generate(model, world.PROMPTS, **options)
    assert len({len(sample.tokens) for sample in growing}) > 3
    steps = []
    monkeypatch.setattr(generation, "decodes_in_graphs", lambda _: True)
    monkeypatch.setattr(generation, "StaticStep", lambda *inputs: steps.append(inputs) or StaticStep(*inputs))
    fixed = generate(model, world.PROMPTS, **options)
    assert [sample.tokens for sample in fixed] == [sample.tokens for sample in growing]
    for a, b in zip(fixed, growing, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5) and a.ended == b.ended
    assert (len(steps) > 2) == (make is not _gemma2)


def test_a_generator_decides_all() -> None:
    model = world.policy().eval()
    draws = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        torch.rand(3)  # the global state plays no part
        samples = generate(model, world.PROMPTS, max_new_tokens=8, eos_token_ids={1}, generator=generator)
        draws.append([sample.tokens for sample in samples])
    assert draws[0] == draws[1] != draws[2]


def test_given_numbers_sample_the_distribution() -> None:
    """Evenly spread numbers: every token as often as its probability says, within one."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).mul(2).expand(1000, 50)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens, logprobs = draw(logits, 0.7, 1.0, None, uniforms)
    counts = torch.bincount(tokens, minlength=50)
    expected = (logits[0] / 0.7).softmax(-1)
    assert (counts - 1000 * expected).abs().max() <= 1
    torch.testing.assert_close(logprobs.exp(), expected[tokens])
    kept, _ = draw(logits, 0.7, 0.5, None, uniforms)
    assert set(kept.tolist()) == set(nucleus(expected.unsqueeze(0), 0.5).nonzero()[:, 1].tolist())


def test_nucleus() -> None:
    p = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.05, 0.05, 0.1, 0.8]])
    assert nucleus(p, 0.7).tolist() == [pytest.approx([0, 0.5, 0.3, 0]), pytest.approx([0, 0, 0, 0.8])]
    assert nucleus(p, 1.0) is p


def test_impossible_sampling_is_refused() -> None:
    model = world.policy()
    with pytest.raises(ConfigError, match="not -1"):
        generate(model, [[3]], max_new_tokens=1, eos_token_ids={1}, temperature=-1)
    with pytest.raises(ConfigError, match="context of 32"):
        generate(model, [[3] * 32], max_new_tokens=1, eos_token_ids={1})
