"""PPO-RLHF: trains a fine-tuned policy against a reward. Each formula has a file of its own."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignment.ppo.config import PPOConfig

if TYPE_CHECKING:
    from alignment.models.ensembles import Ensemble
    from alignment.ppo.snapshots import Snapshot
    from alignment.ppo.train import PPOResult, train_ppo
    from alignment.rewards.components import ModelReward, RuleReward

__all__ = ["Ensemble", "ModelReward", "PPOConfig", "PPOResult", "RuleReward", "Snapshot", "train_ppo"]
_HOMES = {
    "Ensemble": "alignment.models.ensembles",
    "ModelReward": "alignment.rewards.components",
    "RuleReward": "alignment.rewards.components",
    "Snapshot": "alignment.ppo.snapshots",
    "PPOResult": "alignment.ppo.train",
    "train_ppo": "alignment.ppo.train",
}


def __getattr__(name: str) -> Any:
    """Import the trainer on first use: code that reads options alone does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
