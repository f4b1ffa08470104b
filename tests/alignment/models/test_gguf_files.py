"""GGUF files: weights, tokenizer and template as they were written, and a plain checkpoint afterwards."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from alignment.errors import CheckpointError
from alignment.footprint.model import Shape
from alignment.models.gguf_files import count_parameters
from alignment.models.importing import import_checkpoint
from alignment.models.logprobs import right_pad
from alignment.models.scalar import check_config, load_causal_model, save_model
from alignment.models.tokenizer import load_tokenizer
from flows.pipeline.cost import checkpoint_shape

HIDDEN, LAYERS, HEADS, FFN, CONTEXT = 16, 2, 2, 24, 64
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def weights() -> dict[str, np.ndarray]:
    """The tensors of a Llama by their names in GGUF, as float32."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_gate": (FFN, HIDDEN), f"{block}.ffn_up": (FFN, HIDDEN)}
        shapes |= {f"{block}.ffn_down": (HIDDEN, FFN)}
        shapes |= {f"{block}.attn_norm": (HIDDEN,), f"{block}.ffn_norm": (HIDDEN,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 3) + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template(TEMPLATE)
    for name, values in weights().items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_model_with_its_tokenizer_and_template_is_imported_and_saved_as_a_plain_checkpoint(
    file: Path, tmp_path: Path
) -> None:
    model, tokenizer, changes = import_checkpoint(file)
    written = weights()
    assert torch.equal(model.get_input_embeddings().weight[: len(TOKENS)], torch.tensor(written["token_embd"]))
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, torch.tensor(written["blk.1.ffn_down"]))
    assert changes[0] == "the weights of a GGUF file, dequantized to float32"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False).startswith(
        "<|im_start|>user\nthe<|im_end|>"
    )
    assert tokenizer("the")["input_ids"] == [TOKENS.index("th"), TOKENS.index("e")]
    save_model(model, tmp_path / "plain", tokenizer)
    again = load_causal_model(tmp_path / "plain")
    tokens = right_pad([[1, 2, 3]])
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert load_tokenizer(tmp_path / "plain").get_vocab() == tokenizer.get_vocab()


def test_parameters_are_counted_from_the_header(file: Path) -> None:
    assert count_parameters(file) == sum(values.size for values in weights().values())


def test_what_lies_beside_the_file_is_not_read(file: Path) -> None:
    (file.parent / "generation_config.json").write_text('{"eos_token_id": 7}')
    (file.parent / "config.json").write_text("{")
    model, _, _ = import_checkpoint(file)
    assert model.generation_config.eos_token_id == len(TOKENS) - 1


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"PK\x03\x04"])
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.gguf"):
        load_causal_model(path)


def test_a_file_that_is_none_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="name the checkpoint's directory"):
        check_config(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing\.gguf cannot be read"):
        check_config(tmp_path / "missing.gguf")


def test_a_plan_reads_the_sizes_of_a_file_from_its_header(file: Path) -> None:
    assert checkpoint_shape(file) == Shape(LAYERS, HIDDEN, FFN, HIDDEN, len(TOKENS))
