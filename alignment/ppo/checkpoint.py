"""Checkpoints from which a run resumes bit for bit, and the fingerprint that must match for that."""

import hashlib
import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.distributed.collectives import on_main
from alignment.distributed.sharding import part_of, part_of_optimizer, whole_on_main
from alignment.errors import CheckpointError, ConfigError
from alignment.ppo.config import PPOConfig
from alignment.ppo.learner import Learner
from alignment.training.loop import write_state

KEPT = 2


def fingerprint(
    config: PPOConfig,
    prompts: Sequence[Sequence[int]],
    models: dict[str, nn.Module],
    ptx: Sequence[Sequence[int]] | None,
) -> dict[str, str]:
    """Digests of all inputs of a run, by name; every option has its own entry."""
    parts = {f"option {name}": json.dumps(value) for name, value in config.model_dump(mode="json").items()}
    parts["prompts"] = _digest(json.dumps(list(map(list, prompts))))
    parts["ptx_sequences"] = _rows_digest(ptx)
    return parts | {name: _weights_digest(model) for name, model in models.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows_digest(rows: Sequence[Sequence[int]] | None) -> str:
    """The digest of `repr(rows)`, row by row."""
    if rows is None:
        return _digest("None")
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update(f"{', ' if number else ''}{row!r}".encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _weights_digest(model: nn.Module, sampled: int = 256) -> str:
    """Names, shapes and some values of each tensor: distinguishes two models without reading gigabytes."""
    tensors = model.state_dict().items()
    values = (v.detach().flatten() for _, v in tensors)
    spread = [v[:: max(1, len(v) // sampled)].double().tolist() for v in values]
    return _digest(repr([(name, tuple(value.shape)) for name, value in tensors]) + repr(spread))


def save_checkpoint(directory: Path, step: int, learner: Learner, extra: dict[str, Any]) -> Path:
    """Write `step-00040.pt` atomically (a killed run leaves the previous file intact) and delete all but the last two.

    A collective: all processes must call it; the main process writes.
    """
    path = directory / f"step-{step:05d}.pt"
    state = {
        "step": step,
        "policy": _values(learner.policy_weights),
        "value_model": _values(learner.value_weights),
        "policy_optimizer": learner.policy_optimizer.state_dict(),
        "value_optimizer": learner.value_optimizer.state_dict(),
        "average": learner.average,
        "torch_rng": torch.get_rng_state(),
        "extra": extra,
    }
    on_main(_write, whole_on_main(state), path)
    return path


def _write(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_state(state, path)
    for old in sorted(path.parent.glob("step-*.pt"))[:-KEPT]:
        old.unlink()


def _values(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The trained weights; frozen weights are inputs of the run and are not saved."""
    return {name: weight.detach() for name, weight in weights.items()}


@torch.no_grad()
def _assign(weights: dict[str, nn.Parameter], saved: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(part_of(saved[name], weight))


def last_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint."""
    paths = sorted(directory.glob("step-*.pt"))
    return paths[-1] if paths else None


def read_checkpoint(directory: Path, expected: dict[str, str]) -> dict[str, Any] | None:
    """The newest readable checkpoint, or None if there is none. Raises ConfigError for a checkpoint of another run."""
    paths = sorted(directory.glob("step-*.pt"), reverse=True)
    for path in paths:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            warnings.warn(f"{path} cannot be read ({error}); trying the previous checkpoint", stacklevel=2)
            continue
        _check_same_run(state["extra"]["fingerprint"], expected, directory)
        return state
    if paths:
        raise CheckpointError(f"none of the checkpoints in {directory} can be read; remove it to start from step 0")
    return None


def _check_same_run(saved: dict[str, str], expected: dict[str, str], directory: Path) -> None:
    if saved != expected:
        raise ConfigError(
            f"{directory} belongs to a run with other inputs: {changes(saved, expected)}. Restore "
            f"them to resume that run, or remove {directory} or use another `out` to start anew"
        )


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """The differences between two fingerprints, by name."""
    return ", ".join(
        f"{name} (was {before.get(name, 'absent')}, is {now.get(name, 'absent')})"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    )


def restore(state: dict[str, Any], learner: Learner) -> None:
    """Restore weights, optimizers, average and torch's global random state."""
    _assign(learner.policy_weights, state["policy"])
    _assign(learner.value_weights, state["value_model"])
    for optimizer, saved, weights in (
        (learner.policy_optimizer, state["policy_optimizer"], learner.policy_weights),
        (learner.value_optimizer, state["value_optimizer"], learner.value_weights),
    ):
        optimizer.load_state_dict(part_of_optimizer(saved, weights.values()))
    if learner.average is not None:
        for mean, whole in zip(learner.average, state["average"], strict=True):
            mean.copy_(part_of(whole, mean))
    torch.set_rng_state(state["torch_rng"])
