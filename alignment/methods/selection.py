"""Which snapshot of PPO becomes the policy: the earliest that a second reward model scores as good as the best.

The reward that PPO maximizes cannot show when over-optimization begins: it rises to the end. The judge here is a second
reward model, trained on the comparisons that were held out from the first (and tested on those that the first was
trained on), so that errors of the first that come from its labels are not shared. It costs no labels, needs no gold
judge, and the evaluation's prompts stay unseen: policies answer training prompts.

All snapshots answer the same prompts with the same random numbers, so differences are paired. Among those that
are not distinguishable from the best, the earliest has moved least from SFT (the one-standard-error rule, Breiman et
al. 1984).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignment.artifacts import write_json
from alignment.distributed.collectives import from_main, on_main
from alignment.distributed.devices import frozen_dtype
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.generation import generate
from alignment.models.scalar import load_causal_model, load_scalar_model, reward_scores
from alignment.plots import curve
from alignment.ppo.config import PPOConfig
from alignment.ppo.prompts import seeded
from alignment.ppo.shaping import missing_eos_score
from alignment.ppo.snapshots import copy_snapshot, snapshot_path

SIGNAL = "heldout_reward"


@dataclass(frozen=True)
class Selection:
    """The chosen step, and for every step the mean reward and the standard error of its difference from the best."""

    step: int
    means: dict[int, float]
    errors: dict[int, float]


def select_snapshot(
    config: PPOConfig,
    out: Path,
    journal: Journal,
    *,
    steps: Sequence[int],
    validation: Path,
    prompts: Sequence[Sequence[int]],
    chat: ChatFormat,
) -> int:
    """Copy the chosen snapshot to `out/model`; write `selection.json` and a figure; return its step."""
    judge = load_scalar_model(validation / "model", frozen_dtype())
    policies = (load_causal_model(snapshot_path(out, step), frozen_dtype()) for step in steps)
    rewards = torch.stack([snapshot_rewards(policy, judge, prompts, chat, config) for policy in policies])
    chosen = from_main(earliest_as_good(steps, rewards))
    on_main(copy_snapshot, out, chosen.step, out / "model")
    for step in steps:
        journal.log({SIGNAL: chosen.means[step], f"{SIGNAL}_error": chosen.errors[step]}, step)
    journal.figure("selection", curve(journal.read(), [SIGNAL], f"reward by held-out labels; chosen: {chosen.step}"))
    report = {"step": chosen.step, "signal": SIGNAL, "prompts": len(prompts)}
    tables = {"means": chosen.means, "errors": chosen.errors}
    named = {name: {str(step): value for step, value in table.items()} for name, table in tables.items()}
    on_main(write_json, out / "selection.json", report | named)
    return chosen.step


def snapshot_rewards(
    policy: PreTrainedModel,
    judge: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    chat: ChatFormat,
    config: PPOConfig,
) -> Tensor:
    """The judge's score of one answer to each prompt, with PPO's penalty for a missing EOS. Shape: (prompts,)."""
    uniforms = torch.rand(
        (len(prompts), config.max_new_tokens), generator=seeded(config.seed, "selection", 0), dtype=torch.float64
    )
    samples = generate(
        policy,
        prompts,
        max_new_tokens=config.max_new_tokens,
        eos_token_ids=chat.end_ids,
        pad_token_id=chat.pad_token_id,
        temperature=config.temperature,
        uniforms=uniforms,
        batch_size=config.generation_batch_size,
    )
    sequences = [[*prompt, *sample.tokens] for prompt, sample in zip(prompts, samples, strict=True)]
    scores = reward_scores(judge, sequences, [len(prompt) for prompt in prompts])
    ended = torch.tensor([sample.ended for sample in samples])
    return missing_eos_score(scores, ended, config.missing_eos_penalty, config.missing_eos)


def earliest_as_good(steps: Sequence[int], rewards: Tensor) -> Selection:
    """The earliest step whose mean is within one standard error of the difference from the best step's.

    lack_s = mean_i (r_best,i − r_s,i)        s is as good when lack_s ≤ std_i (r_best,i − r_s,i) / √n

    Shape: rewards (steps, n), steps in rising order, the same prompts in every row.
    """
    means = rewards.double().mean(1)
    best = int(means.argmax())  # the earliest of equal means
    lacks = rewards[best].double() - rewards.double()
    errors = lacks.std(1, correction=0) / math.sqrt(rewards.shape[1])
    good = [i for i in range(len(steps)) if lacks[i].mean() <= errors[i]]
    return Selection(
        step=steps[good[0]],
        means={step: float(mean) for step, mean in zip(steps, means, strict=True)},
        errors={step: float(error) for step, error in zip(steps, errors, strict=True)},
    )
