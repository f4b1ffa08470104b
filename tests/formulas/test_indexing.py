"""Alignment of logits and tokens: scoring, sampling and values, on every sequence of a small vocabulary."""

import itertools
import math
from types import ModuleType

import pytest
import torch

from alignment.models import cache, logprobs
from alignment.models import generation as sampling
from alignment.ppo import values
from tests.formulas.models import tiny_llama, tiny_value_model

SEQUENCES = [[2, 0, 1, 1], [1, 0, 2, 2, 0, 1], [0, 1], [2, 2, 2, 1, 0]]
PROMPTS = [2, 3, 1, 4]


def _flat(
    m: ModuleType, model, sequences, prompts, temperature: float, budget: int = 12
) -> dict[tuple[int, int], float]:
    found = {}
    for batch in m.scoring_batches(sequences, prompts, budget):
        values = m.response_logprobs(model, batch, temperature).tolist()
        found |= dict(zip(zip(batch.sequence.tolist(), batch.time.tolist(), strict=True), values, strict=True))
    return found


def check_enumeration(m: ModuleType) -> None:
    """All 3-token continuations of a prompt are all that can happen."""
    model = tiny_llama()
    prompt = [2, 1]
    sequences = [[*prompt, *tail] for tail in itertools.product(range(3), repeat=3)]
    with torch.no_grad():
        found = _flat(m, model, sequences, [2] * 27, 0.7, budget=40)
    total = [sum(found[row, t] for t in range(3)) for row in range(27)]
    assert sum(map(math.exp, total)) == pytest.approx(1, abs=1e-10)


def check_one_sequence_at_a_time(m: ModuleType) -> None:
    """Padding, batching and order change nothing: each token as from a forward of its sequence alone."""
    model = tiny_llama()
    with torch.no_grad():
        found = _flat(m, model, SEQUENCES, PROMPTS, 0.7)
        for row, (sequence, prompt) in enumerate(zip(SEQUENCES, PROMPTS, strict=True)):
            logs = torch.log_softmax(model(torch.tensor([sequence])).logits[0] / 0.7, dim=-1)
            for place in range(prompt, len(sequence)):
                expected = logs[place - 1, sequence[place]].item()
                assert found.pop((row, place - prompt), math.nan) == pytest.approx(expected, abs=1e-10)
    assert not found


def check_entropy_beside_logprobs(m: ModuleType) -> None:
    model = tiny_llama()
    for batch in m.scoring_batches(SEQUENCES, PROMPTS, 12):
        logs, entropy = m.response_logprobs_and_entropy(model, batch, 0.7)
        torch.testing.assert_close(logs, m.response_logprobs(model, batch, 0.7))
        full = model(batch.input_ids).logits[batch.row, batch.position] / 0.7
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=full).entropy())


def check_logprobs_and_entropy(m: ModuleType) -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 6, 2, 2])
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    logprobs, entropy = m.logprobs_and_entropy(logits, targets, 0.7, True)
    torch.testing.assert_close(logprobs, expected.log_prob(targets))
    torch.testing.assert_close(entropy, expected.entropy())


def check_micro_batches(m: ModuleType) -> None:
    lengths = [3, 9, 4, 4, 8, 1, 30]
    batches = m.length_batches(lengths, 18)
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 18 for batch in batches)
    assert batches == [[6], [1, 4], [2, 3, 0], [5]]  # 12 + 1 padded tokens and 18 / 16 for a batch, against 16


def check_sampling(m: ModuleType) -> None:
    """The log-probabilities of sampled tokens are those of a full forward, whatever was padded or dropped."""
    model = tiny_llama(vocab_size=7)
    prompts = [[2 + i % 5] * (1 + i % 4) for i in range(13)]
    generator = torch.Generator().manual_seed(0)
    samples = m.generate(
        model, prompts, max_new_tokens=9, eos_token_ids={1}, temperature=0.7, generator=generator, batch_size=6
    )
    assert any(sample.ended for sample in samples) and not all(sample.ended for sample in samples)
    sequences = [[*prompt, *sample.tokens] for prompt, sample in zip(prompts, samples, strict=True)]
    with torch.no_grad():
        found = _flat(logprobs, model, sequences, [len(prompt) for prompt in prompts], 0.7, budget=200)
    for row, sample in enumerate(samples):
        assert sample.logprobs == pytest.approx([found[row, t] for t in range(len(sample.tokens))], abs=1e-10)
        assert 1 not in sample.tokens[:-1]
        assert sample.ended == (sample.tokens[-1] == 1) and (sample.ended or len(sample.tokens) == 9)


def check_quantile(m: ModuleType) -> None:
    """Weights 2, 0, 1, 1 share [0, 1) out as [0, ½), nothing, [½, ¾), [¾, 1)."""
    uniforms = [0.0, 0.4999, 0.5, 0.7499, 0.75, 1 - 2**-53]
    weights = torch.tensor([[2.0, 0.0, 1.0, 1.0]]).expand(6, 4)
    assert m.quantile(weights, torch.tensor(uniforms, dtype=torch.float64)).tolist() == [0, 0, 2, 2, 3, 3]
    assert m.quantile(torch.tensor([[0.0, 1.0]]), torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def check_large_vocabulary(m: ModuleType) -> None:
    """Found in two steps, the token is the one at which the plain cumulative sum passes u; weights of 0 never are."""
    random = torch.Generator().manual_seed(0)
    for size in (16 * m.BLOCK, 49_152, 50_257):
        weights = torch.rand(64, size, generator=random) ** 20
        weights[:, torch.rand(size, generator=random) < 0.5] = 0
        weights[0, 4:] = 0
        uniforms = torch.rand(64, dtype=torch.float64, generator=random)
        uniforms[:4] = torch.tensor([1 - 2**-53, 0.0, 1 - 2**-53, 2**-53], dtype=torch.float64)
        tokens = m.quantile(weights, uniforms)
        above = weights.double().cumsum(-1)
        assert tokens.tolist() == (above > uniforms.unsqueeze(-1) * above[:, -1:]).int().argmax(-1).tolist()
        assert (weights[torch.arange(64), tokens] > 0).all()


def check_cache(m: ModuleType) -> None:
    """What a layer returns is what concatenation gives, whatever was removed in between and however often it grew."""
    layer, expected = m.SpareLayer(), torch.zeros(5, 2, 0, 3)
    for columns, rows in ((4, [0, 1, 2, 3, 4]), (1, [0, 2, 3]), (m.SPARE_COLUMNS, [2, 1]), (1, [1]), (1, [0])):
        new = torch.randn(len(expected), 2, columns, 3)
        expected = torch.cat([expected, new], 2)
        keys, values = layer.update(new, -new)
        assert torch.equal(keys, expected) and torch.equal(values, -expected)
        assert layer.get_seq_length() == expected.shape[2]
        expected = expected[rows]
        layer.reorder_cache(torch.tensor(rows))
    assert torch.equal(layer.keys, expected)


def check_own_numbers(m: ModuleType) -> None:
    """A response is decided by its own numbers: sampled alone it is the same as among any others."""
    model = tiny_llama(vocab_size=7)
    prompts = [[2 + i % 5] * (1 + i % 4) for i in range(13)]
    uniforms = torch.rand(13, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 9, "eos_token_ids": {1}, "temperature": 0.7}
    alone = [m.generate(model, [p], uniforms=uniforms[i : i + 1], **options)[0].tokens for i, p in enumerate(prompts)]
    assert len({len(tokens) for tokens in alone}) > 2
    for batch_size in (6, 13):
        together = m.generate(model, prompts, uniforms=uniforms, batch_size=batch_size, **options)
        assert [sample.tokens for sample in together] == alone


def check_values(m: ModuleType) -> None:
    """V of a token is read before the token is seen."""
    value_model = tiny_value_model(tiny_llama())
    value_model.config.reward_bias, value_model.config.reward_scale = 0.5, 2.0
    for batch in logprobs.scoring_batches(SEQUENCES, PROMPTS, 12):
        found = m.response_values(value_model, batch)
        for value, row, t in zip(found.tolist(), batch.sequence.tolist(), batch.time.tolist(), strict=True):
            seen = torch.tensor([SEQUENCES[row][: PROMPTS[row] + t]])
            raw = value_model.score(value_model.model(seen).last_hidden_state)[0, -1, 0].item()
            assert value == pytest.approx((raw - 0.5) / 2.0, abs=1e-10)


@pytest.mark.parametrize(
    "check", [check_enumeration, check_one_sequence_at_a_time, check_entropy_beside_logprobs, check_micro_batches]
)
def test_logprobs(check) -> None:
    check(logprobs)


@pytest.mark.parametrize("check", [check_sampling, check_quantile, check_large_vocabulary, check_own_numbers])
def test_sampling(check) -> None:
    check(sampling)


def test_the_cache() -> None:
    check_cache(cache)


def test_values() -> None:
    check_values(values)
