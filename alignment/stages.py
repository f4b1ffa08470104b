"""A training stage as a job: what it is told, which travels as JSON, and the one function that does its work."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.config.methods import BestOfNConfig, DPOConfig, RLOOConfig, RuleOption
from alignment.config.stages import PretrainConfig, RewardConfig, SFTConfig
from alignment.journal import Journal
from alignment.options import Config, Count, Natural
from alignment.ppo.config import PPOConfig
from alignment.rules.form import FormatLimits
from alignment.rules.safety import SafetyLists


class Job(Config):
    """A training stage: its name, its options (of one model, or of several by name), its inputs' directories."""

    stage: str
    config: Any
    seed: Natural
    paths: dict[str, Path]
    processes: Count = 1


def train(job: Job, out: Path, journal: Journal) -> Mapping[str, float]:
    """Do the work in `out`; returns its figures. Every process of a job calls this with the same job."""
    told = job.config
    match job.stage:
        case "pretrain":
            from alignment.training.pretrain import pretrain

            return pretrain(PretrainConfig.model_validate(told), out, journal, seed=job.seed, **job.paths)
        case "sft":
            from alignment.training.sft import finetune

            return finetune(SFTConfig.model_validate(told), out, journal, seed=job.seed, **job.paths)
        case "reward" | "validation":
            from alignment.reward_model.train import train_reward_model

            options, swapped = RewardConfig.model_validate(told), job.stage == "validation"
            return train_reward_model(options, out, journal, seed=job.seed, swapped=swapped, **job.paths)
        case _:
            return _align(job, told, out, journal)


def _align(job: Job, told: Mapping[str, Any], out: Path, journal: Journal) -> Mapping[str, float]:
    """The policy, by the method after which the stage is called."""
    match job.stage:
        case "ppo":
            from alignment.methods.ppo import align

            config = PPOConfig.model_validate(told["ppo"]).model_copy(update={"seed": job.seed})
            asked, minimum = told.get("select_prompts", 0), told.get("ptx_min_reward")
            return align(
                config, out, journal, rules=_rules(told), select_prompts=asked, ptx_min_reward=minimum, **job.paths
            )
        case "dpo":
            from alignment.methods.dpo import dpo

            return dpo(DPOConfig.model_validate(told["dpo"]), out, journal, seed=job.seed, **job.paths)
        case "rloo":
            from alignment.methods.rloo import rloo

            options = RLOOConfig.model_validate(told["rloo"])
            return rloo(options, out, journal, seed=job.seed, rules=_rules(told), **job.paths)
        case _:
            from alignment.methods.best_of_n import best_of_n

            chosen = BestOfNConfig.model_validate(told["best_of_n"])
            return best_of_n(chosen, out, journal, seed=job.seed, rules=_rules(told), **job.paths)


def _rules(told: Mapping[str, Any]) -> list[Any]:
    """The rules beside the reward model, where the recipe has some."""
    if "rules" not in told:
        return []
    from alignment.rewards.build import rule_rewards

    options = [RuleOption.model_validate(option) for option in told["rules"]]
    return rule_rewards(
        options, SafetyLists.model_validate(told["safety"]), FormatLimits.model_validate(told["format"])
    )
