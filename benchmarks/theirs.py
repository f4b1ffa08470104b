"""One run of TRL 1.12.0's PPOTrainer on the workload, in TRL's own environment; prints a line of JSON."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from datasets import Dataset
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.figures import Clock, Figures, peak_mib, resident_mib, update_flops
from benchmarks.workload import PAD, read_prompts, response_length, run_arguments, tokenizer

EPOCHS = 4


class Watch:
    """Seconds of generation and update, and tokens, measured around TRL's own functions."""

    def __init__(self) -> None:
        self.generate = self.update = 0.0
        self.places = self.real = 0
        self.prompt_tokens = self.response_tokens = 0

    def generation(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def watched(model: Any, queries: Any, *args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            output = inner(model, queries, *args, **options)
            self.generate += time.perf_counter() - start
            self.prompt_tokens += int((queries != PAD).sum())
            self.response_tokens += sum(map(response_length, output[0][:, queries.shape[1] :].tolist()))
            return output

        return watched

    def forward(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def watched(model: Any, tokens: Any, *args: Any, **options: Any) -> Any:
            self.places += tokens.numel()
            self.real += int((tokens != PAD).sum())
            return inner(model, tokens, *args, **options)

        return watched

    def accumulation(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def watched(*args: Any, **options: Any) -> Iterator[None]:
            start = time.perf_counter()
            with inner(*args, **options):
                yield
            self.update += time.perf_counter() - start

        return watched


def main() -> None:
    """Train for the requested number of episodes and report."""
    args = _arguments()
    baseline, watch = resident_mib(), Watch()
    ppo_trainer.batch_generation = watch.generation(ppo_trainer.batch_generation)
    ppo_trainer.forward = watch.forward(ppo_trainer.forward)
    with contextlib.redirect_stdout(None):
        trainer = _trainer(args)
        trainer.accelerator.accumulate = watch.accumulation(trainer.accelerator.accumulate)
        clock = Clock()
        trainer.train()
        seconds, cpu_seconds = clock.seconds(), clock.cpu_seconds()
    config = trainer.ref_model.config
    Figures(
        system=args.name,
        episodes=args.episodes,
        response_tokens=watch.response_tokens,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        generate_seconds=watch.generate,
        score_seconds=seconds - watch.generate - watch.update,
        update_seconds=watch.update,
        padding_share=1 - watch.real / watch.places,
        update_flops=update_flops(config, watch.prompt_tokens, watch.response_tokens, args.episodes, EPOCHS),
        baseline_mib=baseline,
        peak_mib=peak_mib(),
    ).print()


def _trainer(args: argparse.Namespace) -> PPOTrainer:
    """Four separate models and the options of the fair pair."""
    policy, reference = (LlamaForCausalLM.from_pretrained(args.workload / "policy") for _ in range(2))
    reward, value = (LlamaForSequenceClassification.from_pretrained(args.workload / "reward") for _ in range(2))
    dataset = Dataset.from_dict({"input_ids": read_prompts(args.workload, args.episodes)})
    config = PPOConfig(
        output_dir=str(args.out),
        report_to="none",
        save_strategy="no",
        num_sample_generations=0,
        logging_steps=1,
        use_cpu=True,
        bf16=args.bf16,
        gradient_checkpointing=False,
        learning_rate=1e-6,
        total_episodes=args.episodes,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=EPOCHS,
        response_length=args.max_new_tokens,
        local_rollout_forward_batch_size=args.batch_size,
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=1.0,
        kl_coef=0.05,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer(),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(8)),
    )


def _arguments() -> argparse.Namespace:
    parser = run_arguments(__doc__, "TRL")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
