"""Alignment of language models: PPO, reward models and the stages around them.

The names below are imported on first use, so that `import alignment` loads neither torch nor transformers.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignment.journal import Journal
    from alignment.models.ensembles import Ensemble
    from alignment.models.importing import import_checkpoint
    from alignment.models.reward_adapters import load_reward
    from alignment.models.scalar import load_scalar_model
    from alignment.ppo.config import PPOConfig
    from alignment.ppo.train import PPOResult, train_ppo
    from alignment.rewards.components import ModelReward, RuleReward

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported

__all__ = [
    "Ensemble",
    "Journal",
    "ModelReward",
    "PPOConfig",
    "PPOResult",
    "RuleReward",
    "import_checkpoint",
    "load_reward",
    "load_scalar_model",
    "train_ppo",
]
_MODULES = {
    "Ensemble": "alignment.models.ensembles",
    "Journal": "alignment.journal",
    "ModelReward": "alignment.rewards.components",
    "PPOConfig": "alignment.ppo.config",
    "PPOResult": "alignment.ppo.train",
    "RuleReward": "alignment.rewards.components",
    "import_checkpoint": "alignment.models.importing",
    "load_reward": "alignment.models.reward_adapters",
    "load_scalar_model": "alignment.models.scalar",
    "train_ppo": "alignment.ppo.train",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
