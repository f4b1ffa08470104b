"""One run of this project's trainer on the workload; prints a line of JSON."""

import argparse
import json
from typing import TypeVar

from accelerate.utils import gather_object
from transformers import PreTrainedModel

from alignment.distributed.collectives import process_count, process_index
from alignment.models.scalar import load_causal_model, load_scalar_model
from alignment.ppo import PPOConfig, train_ppo
from benchmarks.figures import Clock, Figures, peak_mib, resident_mib, update_flops
from benchmarks.workload import read_prompts, run_arguments, tokenizer

T = TypeVar("T")
EPOCHS = 4
FAIR = {  # options that TRL gets too
    "epochs": EPOCHS,
    "temperature": 1.0,
    "kl_coef": 0.05,
    "missing_eos_penalty": 1.0,
    "policy_learning_rate": 1e-6,
    "value_learning_rate": 1e-6,
    "snapshot_every_steps": 10**6,
    "checkpoint_every_steps": 10**6,
}


def main() -> None:
    """Train for the requested number of episodes and report; with several processes the first reports for all."""
    args = _arguments()
    config = PPOConfig(**{**FAIR, "steps": args.episodes // args.batch_size, **_batches(args), **args.options})
    baseline = resident_mib()
    policy = load_causal_model(args.workload / "policy")
    reward = load_scalar_model(args.workload / "reward")
    prompts = read_prompts(args.workload, args.episodes)
    clock = Clock()
    train_ppo(policy, tokenizer(), prompts, reward, config, out=args.out)
    seconds = clock.seconds()
    own = {"cpu_seconds": clock.cpu_seconds(), "baseline_mib": baseline, "peak_mib": peak_mib()}
    sums = {name: sum(gathered(value)) for name, value in own.items()}
    if process_index() == 0:
        _report(policy, args, prompts, seconds, sums)


def gathered(value: T) -> list[T]:
    """The value of each process."""
    return list(gather_object([value])) if process_count() > 1 else [value]


def _report(
    policy: PreTrainedModel,
    args: argparse.Namespace,
    prompts: list[list[int]],
    seconds: float,
    sums: dict[str, float],
) -> None:
    log = [json.loads(line)["values"] for line in (args.out / "metrics.jsonl").open(encoding="utf-8")]
    response_tokens = round(sum(line["length"] for line in log) * args.batch_size)
    Figures(
        system=args.name,
        episodes=args.episodes,
        response_tokens=response_tokens,
        seconds=seconds,
        generate_seconds=sum(line["seconds_sampling"] for line in log),
        score_seconds=sum(line["seconds_scoring"] for line in log),
        update_seconds=sum(line["seconds_update"] for line in log),
        padding_share=sum(line["padding_share"] for line in log) / len(log),
        update_flops=update_flops(policy.config, sum(map(len, prompts)), response_tokens, args.episodes, EPOCHS),
        **sums,
    ).print()


def _batches(args: argparse.Namespace) -> dict[str, int]:
    return {"batch_size": args.batch_size, "minibatch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}


def _arguments() -> argparse.Namespace:
    parser = run_arguments(__doc__, "ours")
    parser.add_argument("--options", type=json.loads, default={}, help="options of PPOConfig as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
