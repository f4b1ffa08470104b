"""Checkpoints whose files are broken, huge or none: each ends in one sentence with the file and the reason."""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from alignment.errors import CheckpointError
from alignment.models.chat import load_chat
from alignment.models.finite import check_finite
from alignment.models.importing import import_checkpoint
from alignment.models.reward_adapters import load_reward, load_scalar_adapter, save_scalar_adapter, scalar_adapter_over
from alignment.models.scalar import load_rewards, load_scalar_model, save_model, scalar_model_from
from tests.flows.tiny import write_model

WEIGHTS = "model.safetensors"
MOST_SECONDS, MOST_BYTES = 60.0, 1 << 30
Spoil = Callable[[Path], None]


def config(**options: object) -> Spoil:
    """Changes options of config.json."""

    def spoil(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text()) | options
        (directory / "config.json").write_text(json.dumps(values))

    return spoil


def file(name: str, content: str | bytes) -> Spoil:
    """Replaces a file."""

    def spoil(directory: Path) -> None:
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def bytes_of_weights(change: Callable[[bytes], bytes]) -> Spoil:
    """Changes the bytes of the weights."""

    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).write_bytes(change((directory / WEIGHTS).read_bytes()))

    return spoil


def header(change: Callable[[list[dict[str, Any]]], None]) -> Spoil:
    """Changes the entries of the tensors in the header of the weights."""

    def rewritten(raw: bytes) -> bytes:
        size = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + size])
        change([entry for name, entry in entries.items() if name != "__metadata__"])
        new = json.dumps(entries).encode()
        return len(new).to_bytes(8, "little") + new + raw[8 + size :]

    return bytes_of_weights(rewritten)


def poisoned(value: float, last: bool = False) -> Spoil:
    """Puts a value into one place of one tensor."""

    def spoil(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        name = sorted(weights)[-1 if last else 0]
        weights[name].view(-1)[-1] = value
        save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})

    return spoil


def without_layers(directory: Path) -> None:
    """Weights that lack what the config makes huge."""
    weights = {name: w for name, w in load_file(directory / WEIGHTS).items() if "mlp" not in name}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    config(intermediate_size=10**9)(directory)


def many_tensors(directory: Path) -> None:
    """Empty tensors, which take a name in the header and nothing else."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(300_000)}).encode()
    (directory / "more.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def pipe(name: str) -> Spoil:
    """A pipe in place of a file."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

    return spoil


def linked(target: str) -> Spoil:
    """Weights that are a link; what they were is put there if it is a path outside."""

    def spoil(directory: Path) -> None:
        (directory / WEIGHTS).rename(directory.parent / "outside.safetensors")
        (directory / WEIGHTS).symlink_to(target)

    return spoil


def adapter(directory: Path) -> None:
    """A PEFT adapter whose base is elsewhere, beside a whole model."""
    values = {"peft_type": "LORA", "base_model_name_or_path": str(directory.parent / "base"), "r": 1}
    (directory / "adapter_config.json").write_text(json.dumps(values))


def adapter_alone(directory: Path) -> None:
    """The adapter without a model, which transformers would load with its base."""
    write_model(directory.parent / "base")
    adapter(directory)
    (directory / "config.json").unlink()
    (directory / WEIGHTS).rename(directory / "adapter_model.safetensors")


def tokenizer(**parts: object) -> Spoil:
    """Replaces parts of the tokenizer."""

    def spoil(directory: Path) -> None:
        values = json.loads((directory / "tokenizer.json").read_text()) | parts
        (directory / "tokenizer.json").write_text(json.dumps(values))

    return spoil


TENFOLD = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
DEEP, DIGITS = "[" * 100_000, '{"hidden_size": ' + "9" * 5000 + "}"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"
HUGE_HEADER = (99_000_000).to_bytes(8, "little") + b"{" + b" " * 98_999_998 + b"}"
CASES: dict[str, tuple[Spoil, str]] = {
    "huge hidden size": (config(hidden_size=10**9), r"config\.json describes a model of .* parameters"),
    "overflowing hidden size": (config(hidden_size=10**18), "model.*overflow"),
    "huge vocabulary": (config(vocab_size=10**10), r"config\.json describes a model of"),
    "huge and missing": (without_layers, r"config\.json describes a model of"),
    "negative layers": (config(num_hidden_layers=-1), r"config\.json has num_hidden_layers -1, .* at least 1"),
    "no heads": (config(num_attention_heads=0), r"config\.json has num_attention_heads 0, .* at least 1"),
    "many layers": (config(num_hidden_layers=10**9), r"num_hidden_layers 1000000000, but the weights .* 12 tensors"),
    "many tensors": (many_tensors, "are 300012 tensors, more than 100000"),
    "many labels": (config(num_labels=10**8), "num_labels 100000000, more than 100000"),
    "many experts": (config(num_local_experts=10**8), "num_local_experts 100000000, more than 4096"),
    "no heads of keys": (config(num_key_value_heads=0), r"config\.json has num_key_value_heads 0, .* at least 1"),
    "no context": (config(max_position_embeddings=-1), r"max_position_embeddings -1, .* at least 1"),
    "a context of one token": (config(max_position_embeddings=1), "max_position_embeddings 1: .* at least 2 tokens"),
    "a context as text": (config(max_position_embeddings="512"), r"does not fit its architecture \(Field 'max_pos"),
    "no number for a context": (config(max_position_embeddings=None), r"does not fit its architecture \(Field 'max"),
    "an EOS as text": (config(eos_token_id="x"), r"does not fit its architecture \(Field 'eos_token_id' with"),
    "heads that do not divide": (config(num_attention_heads=3, head_dim=None), r"architecture \(The hidden size"),
    "a PAD beyond the vocabulary": (config(pad_token_id=99999), "the pad_token_id in its config.json is no token"),
    "a config that is null": (file("config.json", "null"), r"config\.json holds no object but NoneType"),
    "pointers": (file(WEIGHTS, POINTER), r"model\.safetensors is a Git LFS pointer, .* `git lfs pull`"),
    "a tokenizer that is a pointer": (file("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
    "a list for a number": (config(hidden_size=[1, 2]), "model.*hidden_size"),
    "text for a number": (config(hidden_size="x"), "model.*hidden_size"),
    "labels as text": (config(id2label="x"), "model: AttributeError"),
    "a dtype that is none": (config(dtype="float99"), "model.*float99"),
    "an activation that is none": (config(hidden_act="evil"), "model .*: it lacks 'evil', or has it where"),
    "a rope that is none": (config(rope_parameters={"rope_type": "x"}), "model .*: it lacks 'x', or has it where"),
    "another vocabulary": (config(vocab_size=7), "the shapes of its weights are not those that its config"),
    "broken config": (file("config.json", "{"), r"config\.json cannot be read"),
    "a config that is a list": (file("config.json", "[]"), r"config\.json holds no object but list"),
    "a deep config": (file("config.json", DEEP), r"config\.json cannot be read: it is nested too deeply"),
    "digits": (file("config.json", DIGITS), r"config\.json cannot be read: .* number that cannot be kept"),
    "a large config": (file("config.json", b" " * (17 << 20)), r"config\.json cannot be read: .* more than 16 MiB"),
    "half of the weights": (bytes_of_weights(lambda raw: raw[: len(raw) // 2]), r"model\.safetensors is damaged"),
    "no weights": (file(WEIGHTS, b""), r"model\.safetensors is damaged"),
    "a header beyond the file": (
        bytes_of_weights(lambda raw: (1 << 40).to_bytes(8, "little") + raw[8:]),
        r"model\.safetensors is damaged.*header too large",
    ),
    "a header of 99 MB": (file(WEIGHTS, HUGE_HEADER), "describes a model|has no weights for"),
    "overlapping tensors": (
        header(lambda entries: entries[1].update(data_offsets=entries[0]["data_offsets"])),
        r"model\.safetensors is damaged.*invalid offset",
    ),
    "a type that is none": (header(lambda entries: entries[0].update(dtype="F99")), r"model\.safetensors is damaged"),
    "an overflowing shape": (
        header(lambda entries: entries[0].update(shape=[2**62] * 2)),
        r"model\.safetensors is dam",
    ),
    "NaN": (poisoned(float("nan")), r"has NaN or an infinity in lm_head\.weight"),
    "an infinity": (poisoned(float("-inf"), last=True), r"has NaN or an infinity in model\.norm\.weight"),
    "a tokenizer that is empty": (file("tokenizer.json", "{}"), "no tokenizer .*: it lacks 'added_tokens'"),
    "a tokenizer without vocabulary": (file("tokenizer.json", '{"a": 1}'), "no tokenizer could be loaded"),
    "half a tokenizer": (file("tokenizer.json", "{"), "no tokenizer could be loaded"),
    "a class that is a number": (file("tokenizer_config.json", '{"tokenizer_class": 5}'), "no tokenizer could be"),
    "options that are a list": (file("tokenizer_config.json", "[]"), r"tokenizer_config\.json holds no object"),
    "broken generation": (file("generation_config.json", "{"), r"generation_config\.json cannot be read"),
    "generation that is a list": (file("generation_config.json", "[1]"), r"generation_config\.json holds no object"),
    "strange ids": (file("generation_config.json", '{"eos_token_id": {"a": 1}}'), "eos_token_id .* not a token id"),
    "negative lengths": (file("generation_config.json", '{"max_new_tokens": -5}'), "max_new_tokens"),
    "a range of a billion": (file("chat_template.jinja", "{% for i in range(10**9) %}a{% endfor %}"), "Range too big"),
    "a template that is none": (file("chat_template.jinja", "{% for %}"), "the chat template does not take"),
    "a template of megabytes": (
        file("chat_template.jinja", b" " * (2 << 20)),
        r"chat_template\.jinja has more than 1 MiB",
    ),
    "a pipe as weights": (pipe(WEIGHTS), r"model\.safetensors is not a file but a pipe"),
    "a pipe as options": (pipe("generation_config.json"), r"generation_config\.json is not a file but a pipe"),
    "a pipe as tokenizer": (pipe("tokenizer.json"), r"tokenizer\.json is not a file but a pipe"),
    "weights outside": (
        linked("../outside.safetensors"),
        r"model\.safetensors is a link to .*outside of the checkpoint",
    ),
    "weights nowhere": (linked("nowhere"), r"model\.safetensors cannot be read"),
    "weights in themselves": (linked(WEIGHTS), r"model\.safetensors cannot be read"),
    "weights of zeros": (linked("/dev/zero"), r"model\.safetensors is not a file"),
    "an adapter beside": (adapter, r"holds a PEFT adapter over '.*base', .* never read from where an adapter says"),
    "an adapter": (adapter_alone, "holds a PEFT adapter over"),
    "a tokenizer that multiplies": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [TENFOLD] * 12}),
        "makes up to 1,000,000,000,000 characters of each",
    ),
    "a decoder that multiplies": (
        tokenizer(decoder={"type": "Sequence", "decoders": [TENFOLD] * 3}),
        "makes up to 1,000 characters of each",
    ),
    "an expression that fails": (
        tokenizer(normalizer={**TENFOLD, "pattern": {"Regex": "(a|a)*$"}}),
        "no tokenizer could be used .*retry-limit",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    spoil, words = CASES[name]
    write_model(tmp_path / "model")
    spoil(tmp_path / "model")
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=words) as caught:
        import_checkpoint(tmp_path / "model")
    assert time.process_time() - start < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MOST_BYTES
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["huge hidden size", "NaN", "half of the weights", "a pipe as weights", "an adapter beside"]
)
def test_a_hostile_reward_model_and_chat_format_too(tmp_path: Path, name: str) -> None:
    spoil, words = CASES[name]
    write_model(tmp_path / "policy")
    model = scalar_model_from(LlamaForCausalLM.from_pretrained(tmp_path / "policy"))
    save_model(model, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(CheckpointError, match=words.replace("lm_head", "model.embed_tokens")):
        load_scalar_model(tmp_path / "model")
    if name != "NaN" and "hidden" not in name:
        with pytest.raises(CheckpointError):
            load_chat(tmp_path / "model")


def test_a_threshold_of_layers_may_exceed_the_layers(tmp_path: Path) -> None:
    write_model(tmp_path)
    config(max_window_layers=28)(tmp_path)
    assert import_checkpoint(tmp_path)[0].config.max_window_layers == 28


def test_links_inside_a_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    write_model(snapshot)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (snapshot / WEIGHTS).rename(tmp_path / "models--a--b" / "blobs" / "abc")
    (snapshot / WEIGHTS).symlink_to("../../blobs/abc")
    assert import_checkpoint(snapshot)[0].num_parameters() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_found_in_every_type(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    check_finite(
        {"w": torch.tensor([largest, -largest], dtype=dtype), "none": torch.empty(0), "i": torch.ones(2).int()}, "x"
    )
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(CheckpointError, match="x has NaN or an infinity in w"):
            check_finite({"w": torch.tensor([1.0, float(value)], dtype=dtype)}, "x")


def small() -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, None),
        ({"base_model_name_or_path": "/somewhere/else", "init_lora_weights": "pissa"}, None),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern"),
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["(q|k)*"]}, "target_modules"),
        ({"r": 10**9}, "rank 1000000000"),
        ({"r": 3}, "rank 3, but its weights have"),
        ({"r": "x"}, "rank 'x'"),
        ({"lora_alpha": [1]}, "lora_alpha"),
        ({"peft_type": "IA3"}, "adapter of type IA3"),
    ],
)
def test_an_adapter_shapes_its_own_weights_and_nothing_else(
    tmp_path: Path, options: dict[str, object], words: str | None
) -> None:
    base = small()
    model = scalar_adapter_over(base, 2, 4)
    save_scalar_adapter(model, tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text()) | options
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    if words is None:
        loaded = load_scalar_adapter(tmp_path, base)
        tokens = torch.tensor([[1, 2, 3]])
        hidden = [m.base_model(input_ids=tokens).last_hidden_state for m in (model, loaded)]
        assert torch.equal(hidden[0], hidden[1])
    else:
        with pytest.raises(CheckpointError, match=words):
            load_reward(tmp_path, base)


def test_an_adapter_with_nan_or_broken_weights_is_refused(tmp_path: Path) -> None:
    base = small()
    save_scalar_adapter(scalar_adapter_over(base, 2, 4), tmp_path)
    file_ = tmp_path / "adapter_model.safetensors"
    weights = load_file(file_)
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, file_)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors has NaN"):
        load_scalar_adapter(tmp_path, base)
    file_.write_bytes(file_.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged"):
        load_scalar_adapter(tmp_path, base)


@pytest.mark.parametrize(
    "options", [{"reward_scale": 0}, {"reward_scale": "x"}, {"reward_bias": [1]}, {"reward_scale": -1.0}]
)
def test_a_normalisation_that_is_none_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    save_model(scalar_model_from(small()), tmp_path / "model")
    assert isinstance(
        load_rewards(tmp_path), type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model"))
    )
    config(**options)(tmp_path / "model")
    with pytest.raises(CheckpointError, match="no normalisation"):
        load_rewards(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"members": 100000, "combine": "mean", "combine_coef": 0.5}', DEEP])
def test_an_ensemble_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    save_model(scalar_model_from(small()), tmp_path / "model")
    (tmp_path / "ensemble.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"ensemble\.json describes no ensemble"):
        load_rewards(tmp_path)
