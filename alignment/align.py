"""Stage `ppo`: the fine-tuned policy, the reward model and the prompts, put into `alignment.ppo`."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from alignment.adapters import load_reward
from alignment.artifacts import write_json
from alignment.checkpoint import load_tokenizer
from alignment.figures import panels
from alignment.journal import Journal
from alignment.model import load_causal_model
from alignment.ppo.config import PPOConfig
from alignment.ppo.rewards import RuleReward
from alignment.ppo.train import train_ppo
from alignment.pretrain import pack
from alignment.prompts import training_prompts
from alignment.scoring import reward_parts
from alignment.selection import select_snapshot

CURVES = (
    "reward",
    "objective",
    "kl",
    "kl_coef",
    "entropy",
    "length",
    "missing_eos",
    "clip_fraction",
    "approx_kl",
    "policy_loss",
    "value_loss",
    "explained_variance",
    "ptx_loss",
    "policy_grad_norm",
    "value_grad_norm",
)


def align(
    config: PPOConfig,
    out: Path,
    journal: Journal,
    *,
    sft: Path,
    reward: Path,
    prompts: Path,
    corpus: Path,
    rules: Sequence[RuleReward] = (),
    validation: Path | None = None,
    select_prompts: int = 0,
) -> dict[str, float]:
    """Run PPO from `sft/model` against the reward model and the rules on the training prompts; the value model starts
    as the reward model.

    With `validation`, a reward model from other labels, the policy is the snapshot that this one chooses by answers to
    `select_prompts` of the prompts; see `alignment.selection`. Writes `model/`, `snapshots/step-*/`, `snapshots.json`
    (their steps, in order) and, where one was chosen, `selection.json`.
    """
    tokenizer = load_tokenizer(sft / "model")
    frozen = torch.bfloat16 if config.bfloat16 else torch.float32
    one_base = config.layout == "lora"
    policy = load_causal_model(sft / "model", frozen if one_base else torch.float32)
    context = int(policy.config.max_position_embeddings)
    fitting, too_long = training_prompts(prompts, tokenizer, context, config.max_new_tokens, "ppo.max_new_tokens")
    ptx = pack(corpus / "train.jsonl", tokenizer, context).rows.tolist() if config.ptx_coef else None
    result = train_ppo(
        policy,
        tokenizer,
        [tokens for _, tokens in fitting],
        reward_parts(reward, rules, partial(load_reward, language_model=policy, dtype=frozen, shared=one_base)),
        config,
        ptx_sequences=ptx,
        out=out,
        journal=journal,
    )
    steps = [snapshot.step for snapshot in result.snapshots if snapshot.step <= result.policy_step]
    policy_step = result.policy_step
    if validation is not None:
        asked = [tokens for _, tokens in fitting[:select_prompts]]
        policy_step = select_snapshot(
            config, out, journal, steps=steps, validation=validation, prompts=asked, tokenizer=tokenizer
        )
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    write_json(out / "snapshots.json", steps)
    journal.figure("ppo", panels(journal.read(), CURVES, "PPO"))
    kept = ("reward", "objective", "kl", "entropy", "length", "missing_eos", "explained_variance")
    return {name: result.metrics[name] for name in kept if name in result.metrics} | {
        "prompts": float(len(fitting)),
        "prompts_too_long": float(too_long),
        "steps": float(result.steps),
        "policy_step": float(policy_step),
        "stopped_early": float(result.stopped_early),
    }
