"""Tiny models with random weights, one for each architecture of docs/models.md."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 40
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "use_cache": True}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LINEAR = {
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MLA = {
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}

SIZES: dict[str, dict[str, object]] = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": LLAMA,
    "qwen3_moe": {**LLAMA, **EXPERTS},
    "qwen3_next": {**LLAMA, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 8},
    "qwen3_5_text": {**LLAMA, **LINEAR},
    "qwen3_5": {
        "text_config": {**COMMON, **LLAMA, **LINEAR},
        "vision_config": {"hidden_size": 8, "intermediate_size": 8, "depth": 1, "num_heads": 1, "out_hidden_size": 16},
    },
    "gemma": LLAMA,
    "gemma2": {**LLAMA, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3": {
        "text_config": {**COMMON, **LLAMA, **WINDOW, "query_pre_attn_scalar": 8},
        "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    },
    "phi3": LLAMA,
    "phi": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 4},
    "mixtral": {**LLAMA, "num_local_experts": 4, "sliding_window": 4},
    "olmo2": LLAMA,
    "olmoe": {**LLAMA, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "granite": {**LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "smollm3": LLAMA,
    "stablelm": LLAMA,
    "starcoder2": {**LLAMA, "sliding_window": 4},
    "cohere": {**LLAMA, "logit_scale": 0.25},
    "lfm2": {**LLAMA, "layer_types": ["conv", "full_attention"]},
    "deepseek_v3": {
        **LLAMA,
        **MLA,
        "head_dim": 4,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "gpt2": {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, **STILL},
    "gpt_neox": {**LLAMA},
    "gptj": {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, **STILL},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 12,
        "dropout": 0.0,
    },
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
    },
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16, "context_length": 64},
    "falcon_h1": {**LLAMA, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
}


def tiny_config(name: str) -> PreTrainedConfig:
    return AutoConfig.for_model(name, **{**COMMON, **SIZES[name]})


def tiny(name: str, seed: int = 0, auto: type = AutoModelForCausalLM) -> PreTrainedModel:
    """A model of this architecture with random weights, in eval mode."""
    torch.manual_seed(seed)
    return auto.from_config(tiny_config(name)).eval()
