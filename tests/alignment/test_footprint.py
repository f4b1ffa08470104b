"""Predicted memory: sizes against real models and caches, and peaks by hand."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig

from alignment.config.stages import PretrainConfig, RewardConfig, SFTConfig
from alignment.footprint import peaks
from alignment.footprint.model import ACTIVATION_BYTES, FLOAT32, Footprint, Shape, micro_batch_tokens, shape_of
from alignment.models.lora import adapter_weights, add_adapter
from alignment.models.recomputation import recompute_layers

SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
SMOL = Footprint(134_515_008, Shape(layers=30, hidden=576, feed_forward=1536, key_values=192, vocabulary=49_152))
MIB = 2**20


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SIZES)).eval()


def saved_bytes(model: LlamaForCausalLM) -> int:
    """Bytes that autograd keeps for a forward of the trunk over 256 tokens, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(torch.randint(50, (2, 128)), use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


def test_shapes_are_read_from_configs_of_several_families() -> None:
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **SIZES)
    assert shape_of(config) == Shape(layers=4, hidden=64, feed_forward=160, key_values=32, vocabulary=50)
    assert shape_of(SimpleNamespace(**config.to_dict())) == shape_of(config)
    gpt2 = SimpleNamespace(n_embd=64, n_layer=3, n_head=4, n_inner=None, vocab_size=50)
    assert shape_of(gpt2) == Shape(layers=3, hidden=64, feed_forward=256, key_values=64, vocabulary=50)
    experts = MixtralConfig(vocab_size=50, num_experts_per_tok=2, num_key_value_heads=4, **SIZES)
    assert shape_of(experts).feed_forward == 2 * 160


@pytest.mark.parametrize("adapter", [False, True])
def test_saved_activations_are_those_of_a_real_model(adapter) -> None:
    model = llama()
    if adapter:
        model.requires_grad_(False)
        add_adapter(model, 2, 4)
    predicted = FLOAT32 * shape_of(model.config).saved_values(recompute=False, adapter=adapter) * 256
    assert saved_bytes(model) == pytest.approx(predicted, rel=0.12)


def test_recomputed_layers_save_their_inputs_alone() -> None:
    model = llama()
    recompute_layers(model)
    shape = shape_of(model.config)
    last_norm = 2 * shape.hidden
    predicted = FLOAT32 * (shape.layers * shape.hidden + last_norm) * 256
    assert saved_bytes(model) == pytest.approx(predicted, rel=0.05)


def test_adapters_and_caches_are_counted_as_peft_and_transformers_make_them() -> None:
    model = llama()
    shape = shape_of(model.config)
    add_adapter(model, 3, 6)
    assert shape.adapter_parameters(3) == sum(weight.numel() for weight in adapter_weights(model).values())
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(50, (3, 7)), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert Footprint(1, shape).cache(rows=3, tokens=7) == held


def test_a_micro_batch_is_the_budget_the_batch_or_a_row() -> None:
    model = Footprint(1, Shape(layers=2, hidden=8, feed_forward=16, key_values=8, vocabulary=50))
    assert model.micro_batch(100, batch_rows=4, row_tokens=10, recompute=False) == 40
    assert model.micro_batch(25, batch_rows=4, row_tokens=10, recompute=False) == 25
    assert model.micro_batch(5, batch_rows=4, row_tokens=10, recompute=False) == 10
    per_token = FLOAT32 * 2 * (11 * 8 + 4 * 16)
    assert micro_batch_tokens(model.shape, None, ACTIVATION_BYTES, recompute=False) == ACTIVATION_BYTES // per_token


def test_peaks_of_a_model_of_135_million_parameters_by_hand() -> None:
    weights = 4 * 134_515_008
    sft = SFTConfig(batch_size=16, max_length_tokens=384, micro_batch_tokens=384)
    saved = 4 * 384 * 30 * (11 * 576 + 4 * 1536)
    logits = 4 * 4 * 2**24  # 384 tokens have more than a chunk
    assert peaks.of_adapter_training(sft, SMOL, 16, 384) == 4 * weights + saved + logits
    adapter = sft.model_copy(update={"lora_rank": 16})
    parameters = 30 * 16 * (9 * 576 + 2 * 192 + 3 * 1536)
    saved = 4 * 384 * 30 * (9 * 576 + 4 * 1536)
    expected = weights + 16 * parameters + saved + logits
    assert peaks.of_adapter_training(adapter, SMOL, 16, 384) == expected
    assert peaks.of_adapter_training(adapter, SMOL, 16, 384, reference=True) == expected  # the base is the reference
    assert peaks.of_adapter_training(sft, SMOL, 16, 384, reference=True) - 4 * weights - logits > weights


def test_the_peak_is_of_one_instant_not_a_sum() -> None:
    read_only = PretrainConfig(checkpoint="x", epochs=0)
    assert peaks.of_pretraining(read_only, SMOL, 2048) < 1500 * MIB
    reward = RewardConfig(lora_rank=16, max_length_tokens=384, micro_batch_tokens=768)
    alone = peaks.of_reward_training(reward, SMOL, 2)
    update = SMOL.training_state(16) + SMOL.activations(768, recompute=False, adapter=True)
    writing = SMOL.training_state(16) // 3 + SMOL.weights - SMOL.head
    assert alone == SMOL.weights + max(update, writing)
