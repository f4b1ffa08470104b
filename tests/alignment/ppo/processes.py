"""What `accelerate launch` starts in test_processes.py: runs of the trainer in one folder, each in one of its own.

python -m tests.alignment.ppo.processes FOLDER NAME… works in one process too. What a run raises is written to
`NAME/process-N.txt`, and raised again once all runs have been tried.
"""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from alignment.distributed import collectives as processes
from alignment.ppo import memory, update
from alignment.ppo.learner import Learner
from alignment.ppo.models import lay_out
from alignment.ppo.train import PPOResult, train_ppo
from alignment.rewards.components import ModelReward, RuleReward
from tests.alignment.ppo import world
from tests.rounding import norms_in_double_precision

TEXT = [[2, 3, 4, 5, 6, 7], [7, 6, 5, 4], [9, 10, 11, 12, 13]]
OPTIONS: dict[str, dict[str, Any]] = {
    # 15 episodes are 8 and 7 for two processes, a minibatch of 5 is 3 and 2
    "uneven": {
        "batch_size": 15,
        "minibatch_size": 5,
        "whiten_rewards": True,
        "kl_target": 0.5,
        "kl_gain": 0.5,
        "ptx_coef": 0.5,
        "ptx_batch_size": 3,
        "ema_decay": 0.9,
        "weight_decay": 0.1,
        "entropy_coef": 0.01,
        "value_warmup_steps": 1,
    },
    "empty": {"batch_size": 3, "minibatch_size": 1, "ptx_coef": 0.5, "ptx_batch_size": 1, "update_target_kl": 1.0},
    "stops": {
        "steps": 12,
        "policy_learning_rate": 2e-2,
        "kl_coef": 0,
        "missing_eos_penalty": 0,
        "epochs": 4,
        "update_target_kl": 0.02,
        "early_stop_kl": 0.3,
        "early_stop_patience": 1,
        "snapshot_every_steps": 1,
    },
    "shared_trunk": {"layout": "shared_trunk", "value_warmup_steps": 1, "batch_size": 15, "minibatch_size": 5},
    "lora": {"layout": "lora", "lora_rank": 4, "batch_size": 15, "minibatch_size": 5},
    "vllm": {"rollout": {"engine": "vllm", "patience_seconds": 20}, "batch_size": 15, "minibatch_size": 5},
    "raises": {},
    "resumed": {},
    "recomputed": {"gradient_checkpointing": True, "steps": 2, "batch_size": 15, "minibatch_size": 5},
    "float32": {"steps": 2, "batch_size": 15, "minibatch_size": 5},
    "bfloat16": {"steps": 1, "batch_size": 15, "minibatch_size": 5, "bfloat16": True, "ema_decay": 0.9},
    "few": {"batch_size": 1, "minibatch_size": 1},
    "different": {},
}
# Runs with a setting of the launcher that is refused.
SETTINGS = {
    "deepspeed": "ACCELERATE_USE_DEEPSPEED",
    "offloaded": "FSDP_OFFLOAD_PARAMS",
    "loaded_once": "FSDP_CPU_RAM_EFFICIENT_LOADING",
    "recomputed_by_fsdp": "FSDP_ACTIVATION_CHECKPOINTING",
}


def raising(call: int, process: int):
    """count_w7 that fails at its call number `call` in this process."""
    calls = 0

    def count_w7(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == call and processes.process_index() == process:
            raise ZeroDivisionError("no reward today")
        return world.count_w7(prompts, responses)

    return count_w7


def run(out: Path, name: str, rule=world.count_w7) -> PPOResult:
    """One run, in double precision unless its name says other: there several processes must agree closely with one."""
    weights = {"float32": torch.float32, "bfloat16": torch.float32}.get(name, torch.float64)
    reward = [ModelReward("model", 1.0, world.reward_model().to(weights)), RuleReward("w7", 0.5, rule)]
    options = world.config(**{"steps": 3, "micro_batch_tokens": 32, **OPTIONS.get(name, {})})
    seed = int(os.environ.get("RANK", "0")) if name == "different" else 0
    policy = world.policy(seed, tie_word_embeddings=name == "empty").to(weights)
    emulated = mock.patch.object(memory, "has_bfloat16", return_value=True)  # where the processor has none
    with emulated, norms_in_double_precision():
        return train_ppo(policy, world.tokenizer(), world.PROMPTS, reward, options, ptx_sequences=TEXT, out=out / name)


def count_parts(out: Path) -> None:
    """Write what this process keeps of the policy, and what there is in all, after a step on pretraining text."""
    config = world.config(ema_decay=0.9, ptx_coef=1.0, ptx_batch_size=2)
    models = lay_out(config, world.policy(), None, None, [])
    learner = Learner.of(models.policy, models.value_model, config)
    update.accumulate_ptx_gradients(learner, TEXT, config, 0, 0)
    learner.policy_optimizer.step()
    weights, states = list(learner.policy_weights.values()), learner.policy_optimizer.state.values()
    kept = {"weights": weights, "gradients": [weight.grad for weight in weights], "average": learner.average}
    kept |= {name: [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")}
    sizes = {name: [sum(t.to_local().numel() for t in ts), sum(t.numel() for t in ts)] for name, ts in kept.items()}
    (out / f"parts-{processes.process_index()}.json").write_text(json.dumps(sizes), encoding="utf-8")


def run_here(out: Path, name: str) -> None:
    """One run of several processes, with what is to go wrong in it."""
    rule = raising(3, process=1) if name == "raises" else world.count_w7
    with ExitStack() as stack:
        if name in SETTINGS:
            stack.enter_context(mock.patch.dict(os.environ, {SETTINGS[name]: "true"}))
        if name == "version_1":
            stack.enter_context(mock.patch.dict(os.environ, {"FSDP_VERSION": "1"}))
        if name == "breaks" and processes.process_index() == 1:
            stack.enter_context(mock.patch.object(update, "_value_loss", side_effect=MemoryError("no room left")))
        if name == "parts":
            count_parts(out)
        else:
            run(out, name, rule)


def main(out: Path, names: list[str]) -> None:
    """Run all of them, note what they raise, and raise the last of it."""
    torch.set_num_threads(1)
    failure = None
    for name in names:
        try:
            run_here(out, name)
        except Exception as error:
            failure = error
            (out / name).mkdir(exist_ok=True)
            note = out / name / f"process-{processes.process_index()}.txt"
            note.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
    if failure is not None:
        raise failure


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
