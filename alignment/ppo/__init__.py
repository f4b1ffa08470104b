"""PPO-RLHF: from a fine-tuned policy and a reward to an aligned policy, one formula a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignment.ppo.config import PPOConfig

if TYPE_CHECKING:
    from alignment.ppo.snapshots import Snapshot
    from alignment.ppo.train import PPOResult, train_ppo
    from alignment.rewards.components import EnsembleReward, ModelReward, RuleReward

__all__ = ["EnsembleReward", "ModelReward", "PPOConfig", "PPOResult", "RuleReward", "Snapshot", "train_ppo"]
_HOMES = {
    "EnsembleReward": "rewards",
    "ModelReward": "rewards",
    "RuleReward": "rewards",
    "Snapshot": "snapshots",
    "PPOResult": "train",
    "train_ppo": "train",
}


def __getattr__(name: str) -> Any:
    """Load the trainer when it is asked for: whoever reads options alone does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
