"""Logits in chunks: the same values and gradients as of the whole tensor, for every architecture."""

import pytest
import torch
from torch.nn import functional

from alignment.models import heads
from alignment.models.heads import Head, head_of, log_likelihoods, log_likelihoods_and_entropies, trunk_states
from alignment.models.logprobs import (
    response_logprobs,
    response_logprobs_and_entropy,
    scoring_batches,
)
from tests.alignment.models.zoo import SIZES, VOCABULARY, tiny

IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 4, 2, 6, 7, 8]])
NO_TRUNK = {
    "bart",
    "t5",
    "bert",
    "gemma3",
}  # encoders, and a composite model, of which the pipeline keeps the text part
DECODERS = sorted(SIZES.keys() - NO_TRUNK)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Three tokens at a time."""
    monkeypatch.setattr(heads, "LOGITS_AT_A_TIME", 3 * VOCABULARY)


@pytest.mark.parametrize("name", DECODERS)
def test_the_head_alone_gives_the_logits_of_the_model(name) -> None:
    model = tiny(name).eval()
    with torch.no_grad():
        whole = model(input_ids=IDS, use_cache=False).logits
        alone = head_of(model).logits(trunk_states(model, IDS).flatten(0, 1)).view_as(whole)
    assert torch.equal(whole, alone)


def test_log_likelihoods_and_their_gradients_are_those_of_the_formula(small_chunks) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, VOCABULARY).double()
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(VOCABULARY, (10,)), torch.randn(10, dtype=torch.float64)
    learnt = (hidden, *layer.parameters())
    plain = -functional.cross_entropy(layer(hidden) / 0.7, targets, reduction="none")
    chunked = log_likelihoods(Head.linear(layer), hidden, targets, 0.7)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    expected, computed = (torch.autograd.grad((values * upstream).sum(), learnt) for values in (plain, chunked))
    torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-12)


def test_entropies_and_their_gradients_are_those_of_the_formula(small_chunks) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, VOCABULARY).double()
    hidden = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(VOCABULARY, (8,)), torch.randn(8, dtype=torch.float64)
    logs = (layer(hidden) / 0.7).log_softmax(-1)
    plain = -(logs.exp() * logs).sum(-1)
    logprobs, entropies = log_likelihoods_and_entropies(Head.linear(layer), hidden, targets, 0.7, learn_entropy=True)
    torch.testing.assert_close(logprobs, logs[torch.arange(8), targets], rtol=1e-12, atol=0)
    torch.testing.assert_close(entropies, plain, rtol=1e-12, atol=0)
    learnt = (hidden, *layer.parameters())
    expected, computed = (torch.autograd.grad((values * upstream).sum(), learnt) for values in (plain, entropies))
    torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "cohere", "granite"])
def test_responses_in_chunks_have_the_log_probabilities_and_gradients_of_one_piece(name, monkeypatch) -> None:
    model = tiny(name).eval().double()
    sequences = [[3, 4, 5, 6, 7, 8, 9], [9, 4, 2, 6, 7]]
    (batch,) = scoring_batches(sequences, [2, 1], 1000)
    results = []
    for size in (heads.LOGITS_AT_A_TIME, 3 * VOCABULARY):
        monkeypatch.setattr(heads, "LOGITS_AT_A_TIME", size)
        logprobs, entropy = response_logprobs_and_entropy(model, batch, 0.8)
        assert torch.equal(logprobs, response_logprobs(model, batch, 0.8))
        weights = list(model.parameters())
        gradients = torch.autograd.grad((logprobs + 0.1 * entropy).square().sum(), weights, allow_unused=True)
        results.append((logprobs, entropy, *(g for g in gradients if g is not None)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)


def test_no_tensor_is_as_large_as_the_logits_of_all_tokens(small_chunks) -> None:
    layer, kept = torch.nn.Linear(4, VOCABULARY), []
    hidden = torch.randn(30, 4, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_likelihoods(Head.linear(layer), hidden, torch.zeros(30, dtype=torch.long)).sum().backward()
    assert max(kept) <= 3 * VOCABULARY
