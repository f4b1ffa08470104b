"""Adapters over a base in 4 bits: refused without a GPU; trained over quantized weights, merged into whole ones."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from alignment.config.stages import ModelConfig, RewardConfig, SFTConfig
from alignment.errors import ConfigError
from alignment.journal import Journal
from alignment.models import quantized
from alignment.models.lora import has_adapter
from alignment.models.quantized import check_quantizing, is_quantized, load_base
from alignment.models.reward_adapters import load_reward
from alignment.models.scalar import load_causal_model, reward_scores, save_model
from alignment.reward_model.train import train_reward_model
from alignment.training.sft import finetune
from tests.alignment.tiny_world import (
    comparison,
    demonstration,
    make_model,
    make_tokenizer,
    prompt_tokens,
    response_tokens,
    user,
    write,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model's directory with demonstrations and comparisons."""
    directory = tmp_path_factory.mktemp("quantized")
    tokenizer = make_tokenizer(directory)
    sizes = ModelConfig(hidden_size=64, layers=1, heads=2, intermediate_size=64, context_length=64)  # blocks of 32
    save_model(make_model(tokenizer, sizes=sizes), directory / "model", tokenizer)
    write(directory / "demonstrations.jsonl", [demonstration(f"Who {n}?", "Ada plays the violin.") for n in range(8)])
    rows = [comparison(f"Who {n}?", "Ada plays the violin.", "Bo.") for n in range(8)]
    write(directory / "train.jsonl", rows[:6])
    write(directory / "heldout_prompts.jsonl", rows[6:])
    write(directory / "heldout_annotators.jsonl", [])
    return directory, tokenizer


@pytest.fixture
def on_cores(monkeypatch) -> None:
    """bitsandbytes computes on cores too, slowly; without it the test is skipped."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(quantized, "check_quantizing", lambda where: None)


def test_without_a_gpu_or_the_package_it_is_refused_in_words(base, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="quantize: nf4 computes on a GPU, and this process works on cpu: remove"):
        load_base(base[0] / "model", 2, "nf4")
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: `pip install 'rlhf-flows\[gpu\]'`"):
        check_quantizing(torch.device("cuda"))


@pytest.mark.parametrize("config", [SFTConfig, RewardConfig])
def test_only_the_base_of_an_adapter_is_quantized(config) -> None:
    with pytest.raises(ValidationError, match="quantize nf4 is for the frozen weights below an adapter"):
        config(quantize="nf4")
    assert config(quantize="nf4", lora_rank=4).quantize == "nf4"
    assert "quantize" not in config().model_dump()


def test_fine_tuning(base, tmp_path, on_cores) -> None:
    assert is_quantized(load_base(base[0] / "model", 2, "nf4"))
    config = SFTConfig(
        epochs=2, batch_size=4, max_length_tokens=64, learning_rate=1e-2, lora_rank=2, quantize="nf4", log_every_steps=1
    )
    finetune(config, tmp_path, Journal(tmp_path), seed=0, base=base[0], demonstrations=base[0])
    before, after = load_file(base[0] / "model" / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed and all("_proj" in name for name in changed)
    assert all(torch.linalg.matrix_rank(after[n] - before[n], rtol=1e-3) <= 2 for n in changed)
    assert not hasattr(load_causal_model(tmp_path / "model").config, "quantization_config")


def test_a_reward_model(base, tmp_path, on_cores) -> None:
    config = RewardConfig(epochs=4, batch_prompts=3, max_length_tokens=64, learning_rate=1e-2, lora_rank=2)
    config = config.model_copy(update={"quantize": "nf4", "likelihood": True})
    figures = train_reward_model(
        config, tmp_path, Journal(tmp_path), seed=0, sft=base[0], comparisons=base[0], demonstrations=base[0]
    )
    assert figures["accuracy_heldout_prompts"] == 1
    language_model = load_causal_model(base[0] / "model")
    whole, adapter = (load_reward(tmp_path / "model", language_model, shared=shared) for shared in (False, True))
    assert has_adapter(adapter) and not has_adapter(whole)
    head = prompt_tokens(base[1], user("Who 9?"))
    sequences = [head + response_tokens(base[1], text) for text in ("Ada plays the violin.", "Bo.", "Nobody knows.")]
    scores = [reward_scores(model, sequences, [len(head)] * 3) for model in (whole, adapter)]
    assert torch.allclose(*scores, atol=1e-4) and scores[0].std() > 0.1
