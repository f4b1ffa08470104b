"""Hostile checkpoints: no code in them is executed, and messages name the problem."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from alignment.config.stages import SFTConfig
from alignment.errors import ArtifactError, CheckpointError
from alignment.journal import Journal
from alignment.models.importing import import_checkpoint
from alignment.models.scalar import load_scalar_model
from alignment.ppo.checkpoint import read_checkpoint
from alignment.training.loop import TrainingState, cosine_schedule
from alignment.training.trl import run_trainer
from flows.tracking import registry
from tests.flows.tiny import run_stage, text_model, write_model

EVIL_CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists only when code of the checkpoint was run. Whoever is asked whether to run it says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "mark"


def with_pickle(place: Path, mark: Path) -> None:
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))


def with_an_index_of_pickles(place: Path, mark: Path) -> None:
    with_pickle(place, mark)
    told = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(told))
    (place / "other.safetensors").touch()


def with_an_index_that_leads_out(place: Path, mark: Path) -> None:
    (place / "model.safetensors").rename(place.parent / "outside.safetensors")
    (place / "other.safetensors").touch()
    told = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(told))


def with_code(place: Path, mark: Path, file: str = "config.json", known: str = "model_type") -> None:
    (place / "evil.py").write_text(EVIL_CODE.format(mark=str(mark)))
    config = json.loads((place / file).read_text())
    config |= {
        known: "Evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]},
    }
    (place / file).write_text(json.dumps(config))


def with_code_of_a_tokenizer(place: Path, mark: Path) -> None:
    with_code(place, mark, "tokenizer_config.json", "tokenizer_class")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_pickle, r"no \*\.safetensors but pytorch_model\.bin, which can run code: load it where you trust"),
        (with_an_index_of_pickles, "names 'pytorch_model.bin': weights are"),
        (with_an_index_that_leads_out, r"names '\.\./outside\.safetensors': weights are"),
        (with_code, "comes with Python code of its own, which is never run here"),
        (with_code_of_a_tokenizer, "comes with Python code of its own, which is never run here"),
    ],
)
def test_a_hostile_checkpoint_runs_nothing(
    tmp_path: Path, mark: Path, spoil: Callable[[Path, Path], None], words: str
) -> None:
    write_model(tmp_path / "model")
    spoil(tmp_path / "model", mark)
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(tmp_path / "model")
    if "tokenizer" not in spoil.__name__:
        with pytest.raises(CheckpointError):
            load_scalar_model(tmp_path / "model")
    assert not mark.exists()


def test_code_beside_an_architecture_that_is_known_is_passed_over(tmp_path: Path, mark: Path) -> None:
    write_model(tmp_path)
    with_code(tmp_path, mark)
    told = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert import_checkpoint(tmp_path)[0].config.model_type == "llama"
    assert not mark.exists()


def test_a_chat_template_cannot_reach_python(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(CheckpointError, match=r"the chat template does not take this conversation: .* is unsafe"):
        import_checkpoint(tmp_path)


def small() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )


def test_a_hostile_state_of_pretraining_is_not_read(tmp_path: Path, mark: Path) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(tmp_path / "checkpoint", model, optimizer, cosine_schedule(optimizer, 4, 0.1, 0.1))
    state.save(1)
    torch.save({"step": 1, "model": Evil(mark)}, state.file)
    with pytest.raises(CheckpointError, match=r"state\.pt contains objects other.*remove .*checkpoint to start"):
        state.resume()
    assert not mark.exists()


def test_a_hostile_checkpoint_of_ppo_is_not_read(tmp_path: Path, mark: Path) -> None:
    torch.save({"step": 1, "policy": Evil(mark)}, tmp_path / "step-00001.pt")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(CheckpointError, match="none of the"):
        read_checkpoint(tmp_path, {})
    assert not mark.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_hostile_state_of_fine_tuning_is_not_read(tmp_path: Path, mark: Path, file: str) -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    told = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        max_steps=1,
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    Trainer(small(), told, train_dataset=rows).train()  # type: ignore[arg-type]
    torch.save({"state": Evil(mark)}, tmp_path / "checkpoint-1" / file)
    told.max_steps = 2
    with pytest.raises(CheckpointError, match=r"checkpoint-1 contains objects other than tensors"):
        run_trainer(Trainer(small(), told, train_dataset=rows), tmp_path, Journal(tmp_path / "journal"), {}, "sft")  # type: ignore[arg-type]
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.pkl", "adapter.bin", "evil.py", "weights.h5", "inner/optimizer.pt", "noname"])
def test_what_is_no_plain_file_is_not_registered(tmp_path: Path, name: str) -> None:
    write_model(tmp_path)
    registry.check_weights(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ArtifactError, match=Path(name).name):
        registry.check_weights(tmp_path)


def test_a_link_is_not_registered(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match=r"more\.json"):
        registry.check_weights(tmp_path / "model")


def test_a_version_in_mlflow_holds_no_pickle(home: Path) -> None:
    made = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    files = [path for path in (home / "mlruns").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    for path in files:
        head = path.read_bytes()[:2]
        assert path.suffix not in {".pkl", ".pickle", ".bin", ".pt", ".pth"} and head not in (b"\x80\x04", b"\x80\x05")
        assert head != b"PK", f"{path} is an archive, as torch.save makes them"
    found = MlflowClient().get_model_version("sft", "1")
    assert found.run_id == made.run_id and mlflow.models.get_model_info("models:/sft/1").flavors["python_function"]
