"""Micro-batches and recomputation: what a step does to the weights does not depend on them."""

import pytest
import torch
from torch import nn

from alignment.config.stages import PretrainConfig, RewardConfig
from alignment.errors import ConfigError
from alignment.journal import Journal
from alignment.models import heads
from alignment.models.chat import ChatFormat
from alignment.models.logprobs import length_batches
from alignment.models.scalar import load_causal_model
from alignment.records import Document
from alignment.reward_model.train import group_by_prompt, micro_batches, train_groups, untrained
from alignment.training import loop
from alignment.training.pretrain import PackedText, heldout_text, next_token_loss, train_packed
from alignment.training.pretrain import micro_batches as parts_of_rows
from tests.alignment.tiny_world import LINES, SIZES, comparison, encoded, make_base, make_model, write

ANSWERS = ("Ada plays the violin.", "Ada plays a cat.", "Bo.", "Nobody knows why the river is so cold.")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model's directory and its tokenizer."""
    directory = tmp_path_factory.mktemp("base")
    return directory, make_base(directory)[1]


@pytest.fixture
def large(monkeypatch) -> None:
    """Every model counts as large, so that micro-batches are computed one after the other."""
    monkeypatch.setattr(loop, "SMALL_MODEL", 0)


def test_batches_of_items_with_several_rows_stay_within_the_budget() -> None:
    lengths, rows = [9, 3, 8, 2, 7, 5], [2, 4, 2, 9, 3, 1]
    batches = length_batches(lengths, 30, rows)
    assert sorted(item for batch in batches for item in batch) == list(range(6))
    padded = [max(lengths[i] for i in batch) * sum(rows[i] for i in batch) for batch in batches]
    assert all(tokens <= 30 or len(batch) == 1 for tokens, batch in zip(padded, batches, strict=True))
    assert length_batches(lengths, 30) == length_batches(lengths, 30, [1] * 6)


def test_rows_are_split_within_the_budget_and_none_is_lost() -> None:
    rows = torch.arange(32 * 5).view(32, 5)
    for budget in (1, 5, 12, 64, 1000):
        parts = parts_of_rows(rows, budget)
        assert torch.equal(torch.cat(parts), rows)
        assert all(part.numel() <= max(5, budget) for part in parts)
    assert [len(part) for part in parts_of_rows(rows, 1000, at_least=2)] == [16, 16]
    assert parts_of_rows(rows[:0], 1000, at_least=2) == []


def pretrained(tokenizer, directory, **options) -> dict[str, torch.Tensor]:
    """The weights after two steps on seven rows, four and three."""
    model = make_model(tokenizer)
    text = PackedText(torch.randint(300, (7, 16), generator=torch.Generator().manual_seed(0)), 1.0)
    config = PretrainConfig(model=SIZES, epochs=1, batch_sequences=4, warmup_share=0, **options)
    train_packed(model, text, text, config, directory, Journal(directory), seed=0)
    return model.state_dict()


@pytest.mark.parametrize("options", [{"micro_batch_tokens": 20}, {"micro_batch_tokens": 48}, {}])
@pytest.mark.parametrize("recompute", [False, True])
def test_pretraining(base, tmp_path, large, options, recompute) -> None:
    expected = pretrained(base[1], tmp_path / "whole", micro_batch_tokens=1000)
    weights = pretrained(base[1], tmp_path / "parts", gradient_checkpointing=recompute, **options)
    assert all(torch.allclose(weights[name], expected[name], atol=1e-6) for name in expected)


def judged(base, directory, monkeypatch, *, small=0, **options) -> tuple[dict[str, torch.Tensor], list]:
    """Trained weights and logs of two steps on prompts with two to six responses of uneven length."""
    monkeypatch.setattr(loop, "SMALL_MODEL", small)
    rows = [
        comparison(f"Who {n}?", ANSWERS[i], ANSWERS[i + 1], weight=1 + n / 7)
        for n in range(6)
        for i in range(1 + n % 3)
    ]
    groups = group_by_prompt(encoded(base[1], rows))
    config = RewardConfig(
        epochs=1, batch_prompts=3, lm_coef=0.3, likelihood=True, learning_rate=1e-2, log_every_steps=1, **options
    )
    model, language_head = untrained(load_causal_model(base[0] / "model"), config, 1)
    journal = Journal(directory)
    train_groups(model, language_head, groups, config, directory, journal, 0)
    values = [line["values"] for line in journal.read()]
    return model.state_dict(), values


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_reward_models(base, tmp_path, monkeypatch, lora, recompute) -> None:
    expected, logged = judged(base, tmp_path / "whole", monkeypatch, lora_rank=lora, small=2**25)
    options = {"micro_batch_tokens": 50, "gradient_checkpointing": recompute, "lora_rank": lora}
    weights, values = judged(base, tmp_path / "parts", monkeypatch, **options)
    assert all(torch.allclose(weights[name], expected[name], atol=5e-6) for name in expected)
    for before, after in zip(logged, values, strict=True):
        assert after == pytest.approx(before, rel=1e-4)


def test_prompts_are_split_by_the_padded_tokens_of_all_their_responses(base) -> None:
    rows = [comparison(f"Who {n}?", *ANSWERS[:2]) for n in range(7)]
    groups = group_by_prompt(encoded(base[1], rows))
    longest = max(len(sequence) for group in groups for sequence in group.sequences)
    parts = micro_batches(groups, 2 * 3 * longest, in_halves=False)
    assert sorted(map(len, parts)) == [1, 3, 3]
    halves = micro_batches(groups, 100 * longest, in_halves=True)
    assert halves == [groups[::2], groups[1::2]]
    assert micro_batches([], 100, in_halves=True) == []


def test_the_loss_of_a_text_in_chunks_has_the_value_and_the_gradient_of_the_formula(base, monkeypatch) -> None:
    model = make_model(base[1])
    rows = torch.randint(300, (3, 16), generator=torch.Generator().manual_seed(0))
    results = []
    for size in (heads.LOGITS_AT_A_TIME, 5 * 300):
        monkeypatch.setattr(heads, "LOGITS_AT_A_TIME", size)
        loss = next_token_loss(model, rows, 0.5)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_a_budget_follows_from_the_size_of_the_model(base) -> None:
    model = make_model(base[1])
    saved = 11 * 16 + 4 * 32  # one layer of width 16, network 32
    assert loop.token_budget(None, model) == loop.ACTIVATION_BYTES // (4 * saved)
    assert loop.token_budget(None, model, recompute=True) == loop.ACTIVATION_BYTES // (4 * (16 + saved))
    assert loop.token_budget(7, model) == 7


def test_a_model_without_layers_to_recompute_is_refused(base, tmp_path) -> None:
    model = make_model(base[1])
    model.model.layers = nn.ModuleList([nn.Identity()])
    text = PackedText(torch.zeros(2, 16, dtype=torch.long), 1.0)
    config = PretrainConfig(model=SIZES, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="no layers that transformers could recompute"):
        train_packed(model, text, text, config, tmp_path, Journal(tmp_path), seed=0)


def test_heldout_text_is_sampled_from_all_parts_where_contexts_are_long(base, tmp_path) -> None:
    chat = ChatFormat.of(base[1])
    write(tmp_path / "heldout.jsonl", [Document(text=line) for line in LINES * 12])
    whole = heldout_text(tmp_path, chat, 64)
    tokens = whole.rows.numel() - whole.filling
    assert whole.rows.shape[1] == 64
    assert heldout_text(tmp_path, chat, 8192).rows.shape[1] == 512
    rows = heldout_text(tmp_path, chat, 64, row_tokens=16).rows
    assert rows.shape == (-(-tokens // 16), 16)
    sample = heldout_text(tmp_path, chat, 64, row_tokens=16, tokens=100)
    assert sample.rows.shape == (6, 16) and not sample.filling
    whole_rows = tokens // 16
    assert torch.equal(sample.rows, rows[[i * whole_rows // 6 for i in range(6)]])
