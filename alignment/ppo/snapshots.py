"""Intermediate policies, as plain checkpoints: the points of the gold-against-proxy curve."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed.collectives import on_main
from alignment.distributed.sharding import whole_models
from alignment.models.lora import has_adapter, merged
from alignment.models.scalar import save_model
from alignment.ppo.learner import Learner


@dataclass(frozen=True)
class Snapshot:
    """An intermediate policy; `kl` to the reference is measured by the next rollout (None for the last)."""

    step: int
    path: Path
    kl: float | None


def snapshot_path(out: Path, step: int) -> Path:
    """The path of the snapshot of a step; step 0 is the initial policy."""
    return out / "snapshots" / f"step-{step:05d}"


def publish(learner: Learner, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write the policy (averaged if configured, adapters merged) and the tokenizer to `path` atomically.

    A collective: all processes must call it; the main process writes.
    """
    with averaged(learner), whole_models(learner.shards, learner.policy) as (policy,):
        on_main(_write, policy, tokenizer, path)


def _write(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    temporary = _fresh_directory_beside(path)
    save_model(merged(policy) if has_adapter(policy) else policy, temporary, tokenizer)
    _replace(temporary, path)


def copy_snapshot(out: Path, step: int, path: Path) -> None:
    """Copy the snapshot of `step` to `path` atomically."""
    temporary = _fresh_directory_beside(path)
    shutil.copytree(snapshot_path(out, step), temporary, dirs_exist_ok=True)
    _replace(temporary, path)


def last_within(snapshot_kl: Mapping[int, float | None], limit: float) -> int:
    """The last snapshot with a measured KL within the limit; step 0, the reference itself, always qualifies."""
    return max(step for step, kl in snapshot_kl.items() if step == 0 or (kl is not None and kl <= limit))


def _fresh_directory_beside(path: Path) -> Path:
    temporary = path.with_name(path.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def _replace(temporary: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)


@contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """A context in which the policy has its averaged weights."""
    if learner.average is None:
        yield
        return
    weights = [weight.detach().clone() for weight in learner.policy_weights.values()]
    _assign(learner, learner.average)
    try:
        yield
    finally:
        _assign(learner, weights)


@torch.no_grad()
def _assign(learner: Learner, weights: Sequence[Tensor]) -> None:
    for parameter, weight in zip(learner.policy_weights.values(), weights, strict=True):
        parameter.copy_(weight)
