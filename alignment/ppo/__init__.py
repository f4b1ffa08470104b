"""PPO-RLHF: from a fine-tuned policy and a reward to an aligned policy, one formula a file."""

from alignment.ppo.config import PPOConfig
from alignment.ppo.rewards import ModelReward, RuleReward
from alignment.ppo.snapshots import Snapshot
from alignment.ppo.train import PPOResult, train_ppo

__all__ = ["ModelReward", "PPOConfig", "PPOResult", "RuleReward", "Snapshot", "train_ppo"]
