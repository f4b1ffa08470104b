"""One process of `benchmarks.gpu`: runs functions and stages on a device and writes what came of each to a JSON file.

    python -m benchmarks.gpu_work compare --device cuda --world DIR --out results.json

They run independently: a failure is recorded with its traceback, and the next starts. The file is written after each.
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from alignment.config.stages import (
    ComputeConfig,
    EvaluationConfig,
    PretrainConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
)
from alignment.data import responses
from alignment.distributed.devices import computing, device, release_memory
from alignment.evaluation import bench, judged_responses
from alignment.journal import Journal
from alignment.models.generation import Sample, generate
from alignment.models.likelihood import add_likelihood
from alignment.models.scalar import load_causal_model, load_scalar_model, member_scores
from alignment.models.static_decoding import VARIABLE as CUDA_GRAPHS
from alignment.ppo.config import PPOConfig
from alignment.rules.options import AlignOptions
from alignment.training.loop import backward
from alignment.training.pretrain import next_token_loss, pretrain
from benchmarks.gpu_world import ANSWERS, SIZES, Size

Figures = dict[str, Any]
Stage = Callable[["World", Path, Journal], Mapping[str, float]]
SAMPLED = 32  # weights of a tensor that are compared


@dataclass
class World:
    """The directories that stages read, and how large everything is."""

    path: Path
    size: Size
    generated: dict[str, float] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """A language model: stands for base, SFT and policy."""
        return self.path / "base"


# --- functions, on the same inputs --------------------------------------------------------------------------------


def sequences_of(world: World, count: int = 12) -> tuple[list[list[int]], list[int]]:
    """Random sequences of unlike length, and the lengths of their prompts."""
    generator = torch.Generator().manual_seed(5)
    lengths = [8 + 3 * number for number in range(count)]
    drawn = [torch.randint(5, world.size.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return drawn, [3 + number % 4 for number in range(count)]


def loss_and_gradient(world: World) -> Figures:
    """Next-token loss of two halves of a batch, and the gradient of each weight."""
    model = load_causal_model(world.base / "model")
    rows = torch.randint(5, world.size.vocab_size, (4, 32), generator=torch.Generator().manual_seed(2))
    weights = list(model.parameters())
    loss = backward([partial(next_token_loss, model, half, 0.5) for half in rows.chunk(2)], weights)
    return {"loss": float(loss), "gradient_norms": [float(w.grad.norm()) for w in weights if w.grad is not None]}


def sampled(world: World, **options: Any) -> Figures:
    """Responses from fixed uniforms: tokens, and their log-probabilities."""
    model = load_causal_model(world.base / "model")
    prompts = [sequence[:length] for sequence, length in zip(*sequences_of(world), strict=True)]
    uniforms = torch.rand((len(prompts), 16), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = generate(model, prompts, max_new_tokens=16, eos_token_ids=[1], uniforms=uniforms, **options)
    return {"tokens": [s.tokens for s in samples], "logprobs": [s.logprobs for s in samples]}


def in_graphs(work: Callable[..., Mapping[str, Any]], *inputs: Any, **options: Any) -> dict[str, Any]:
    """The same with tokens that are sampled in CUDA graphs (no difference on a CPU)."""
    with patch.dict(os.environ, {CUDA_GRAPHS: "1"}):
        return dict(work(*inputs, **options))


def scores(world: World, likelihood: bool) -> Figures:
    """A reward model's scores, with and without its likelihood term."""
    reward = load_scalar_model(world.path / "reward" / "model")
    if likelihood:
        head = load_causal_model(world.base / "model").get_output_embeddings()
        assert isinstance(head, nn.Linear)
        add_likelihood(reward, head)
        nn.init.constant_(reward.get_parameter("likelihood.coef.bias"), 0.5)
    return {"scores": member_scores(reward, *sequences_of(world), token_budget=64)[0].tolist()}


def divergence(world: World) -> Figures:
    """KL of sampled responses to a reference."""
    sequences, lengths = sequences_of(world)
    prompts = [sequence[:length] for sequence, length in zip(sequences, lengths, strict=True)]
    samples = [
        Sample(sequence[length:], [-1.0] * (len(sequence) - length))
        for sequence, length in zip(sequences, lengths, strict=True)
    ]
    reference = load_causal_model(world.base / "model")
    return {"kl": judged_responses.sequence_kl(reference, prompts, samples, 0.8)}


FUNCTIONS: dict[str, Callable[[World], Figures]] = {
    "loss and gradient": loss_and_gradient,
    "sampling, greedy": partial(sampled, temperature=0.0),
    "sampling, from uniforms": sampled,
    "sampling, in graphs": partial(in_graphs, sampled),
    "sampling, top_p": partial(sampled, top_p=0.8, temperature=0.7),
    "scores": partial(scores, likelihood=False),
    "scores with likelihood": partial(scores, likelihood=True),
    "KL of samples": divergence,
}


# --- stages -----------------------------------------------------------------------------------------------------------


def run_pretrain(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """From the checkpoint, a single pass over the text."""
    config = PretrainConfig(
        checkpoint=str(world.base / "model"),
        epochs=1,
        batch_sequences=world.size.batch,
        learning_rate=1e-4,
        log_every_steps=1,
    )
    return pretrain(config, out, journal, seed=0, corpus=world.path / "corpus")


def run_sft(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """One pass over the demonstrations."""
    from alignment.training.sft import finetune

    config = SFTConfig(epochs=1, batch_size=world.size.batch, learning_rate=1e-4, log_every_steps=1)
    return finetune(config, out, journal, seed=0, base=world.base, demonstrations=world.path / "demonstrations")


def run_responses(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """Four responses to each training prompt."""
    size = world.size
    config = SamplingConfig(prompts=size.prompts, responses_per_prompt=4, max_new_tokens=size.response_tokens)
    options = config.model_copy(update={"batch_size": 4 * size.prompts})
    return responses.sample_responses(options, out, journal, seed=0, model=world.base, prompts=world.path / "prompts")


def run_reward(world: World, out: Path, journal: Journal, **options: Any) -> Mapping[str, float]:
    """One pass over the compared prompts."""
    from alignment.reward_model.train import train_reward_model

    config = RewardConfig(epochs=1, batch_prompts=8, learning_rate=1e-5, log_every_steps=1, **options)
    comparisons, demonstrations = world.path / "comparisons", world.path / "demonstrations"
    return train_reward_model(
        config, out, journal, seed=0, sft=world.base, comparisons=comparisons, demonstrations=demonstrations
    )


def run_ppo(world: World, out: Path, journal: Journal, **options: Any) -> Mapping[str, float]:
    """A few rollouts with their updates."""
    from alignment.methods.ppo import ppo

    size = world.size
    config = PPOConfig(
        **{
            "steps": 3,
            "batch_size": 4 * size.batch,
            "minibatch_size": 2 * size.batch,
            "micro_batch_tokens": 32 * size.sequence_tokens,
            "max_new_tokens": size.response_tokens,
            "policy_learning_rate": 1e-5,
            "value_learning_rate": 1e-5,
            "snapshot_every_steps": 3,
            "checkpoint_every_steps": 3,
            **options,
        }
    )
    reward, prompts, corpus = (world.path / name for name in ("reward", "prompts", "corpus"))
    directories = {"sft": world.base, "reward": reward, "prompts": prompts, "corpus": corpus}
    return ppo(config, out, journal, seed=0, align=AlignOptions(), **directories)


def run_dpo(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """One pass over the comparisons."""
    from alignment.methods.dpo import DPOConfig, dpo

    config = DPOConfig(epochs=1, batch_size=world.size.batch, learning_rate=1e-5, log_every_steps=1)
    return dpo(config, out, journal, seed=0, sft=world.base, comparisons=world.path / "comparisons")


def run_kto(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """One pass over the answers of the comparisons."""
    from alignment.methods.kto import KTOConfig, kto

    config = KTOConfig(epochs=1, batch_size=world.size.batch, learning_rate=1e-5, log_every_steps=1)
    return kto(config, out, journal, seed=0, sft=world.base, comparisons=world.path / "comparisons")


def run_rloo(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """A few rollouts with their updates."""
    from alignment.methods.rloo import RLOOConfig, rloo

    size = world.size
    config = RLOOConfig(
        steps=4,
        batch_size=2 * size.batch,
        max_new_tokens=size.response_tokens,
        learning_rate=1e-5,
        checkpoint_every_steps=4,
    )
    reward, prompts = world.path / "reward", world.path / "prompts"
    return rloo(config, out, journal, seed=0, sft=world.base, reward=reward, prompts=prompts, align=AlignOptions())


def run_best_of_n(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """The best of four responses to each prompt, and fine-tuning on them."""
    from alignment.methods.best_of_n import BestOfNConfig, best_of_n

    finetune = SFTConfig(epochs=1, batch_size=world.size.batch, learning_rate=1e-4, log_every_steps=1)
    config = BestOfNConfig(samples=4, max_new_tokens=96, finetune=finetune)
    reward, prompts = world.path / "reward", world.path / "prompts"
    return best_of_n(config, out, journal, seed=0, sft=world.base, reward=reward, prompts=prompts, align=AlignOptions())


def run_evaluate(world: World, out: Path, journal: Journal) -> Mapping[str, float]:
    """Three models on the held-out prompts, and best-of-n sampling from SFT."""
    from alignment.evaluation.run import evaluate

    config = EvaluationConfig(max_new_tokens=world.size.response_tokens, samples_per_prompt=4, best_of_n=(4,))
    reward, prompts, corpus = (world.path / name for name in ("reward", "prompts", "corpus"))
    base = sft = policy = world.base
    return evaluate(
        config,
        out,
        journal,
        seed=0,
        base=base,
        sft=sft,
        policy=policy,
        reward=reward,
        prompts=prompts,
        corpus=corpus,
    )


@dataclass(frozen=True)
class Row:
    """A stage with its options: what runs it, the tokens of a step, and whether both devices must give the same.

    Where a generator of the device draws the responses, they are others on each.
    """

    run: Stage
    step_tokens: Callable[[Size], int] | None = None
    same: bool = True
    sizes: tuple[str, ...] = ("tiny", "half")


TINY = ("tiny",)
REWARD_TOKENS = 8 * ANSWERS
ROWS = {
    "pretrain": Row(run_pretrain, lambda size: size.batch * size.context),
    "sft": Row(run_sft, lambda size: size.batch * size.sequence_tokens),
    "responses": Row(run_responses, same=False),
    "responses, in graphs": Row(partial(in_graphs, run_responses), same=False),
    "reward": Row(run_reward, lambda size: REWARD_TOKENS * size.sequence_tokens),
    "reward, lora": Row(partial(run_reward, lora_rank=8), lambda size: REWARD_TOKENS * size.sequence_tokens),
    "reward, likelihood, lm_coef, ensemble": Row(
        partial(run_reward, likelihood=True, lm_coef=0.1, members=2, combine="uncertainty"), sizes=TINY
    ),
    "ppo, separate": Row(run_ppo),
    "ppo, separate, in graphs": Row(partial(in_graphs, run_ppo)),
    "ppo, separate, bfloat16": Row(partial(run_ppo, bfloat16=True), same=False),
    "ppo, shared_trunk": Row(partial(run_ppo, layout="shared_trunk")),
    "ppo, lora": Row(partial(run_ppo, layout="lora")),
    "ppo, lora, bfloat16, gradient_checkpointing": Row(
        partial(run_ppo, layout="lora", bfloat16=True, gradient_checkpointing=True), same=False
    ),
    "ppo, ptx and average": Row(partial(run_ppo, ptx_coef=0.5, ptx_batch_size=4, ema_decay=0.9), sizes=TINY),
    "dpo": Row(run_dpo, lambda size: 2 * size.batch * size.sequence_tokens),
    "kto": Row(run_kto, lambda size: size.batch * size.sequence_tokens),
    "rloo": Row(run_rloo, lambda size: 2 * size.batch * size.sequence_tokens, same=False),
    "best_of_n": Row(run_best_of_n, same=False, sizes=TINY),
    "evaluate": Row(run_evaluate, same=False),
}


@contextmanager
def timed_sampling(world: World) -> Iterator[None]:
    """Tokens and seconds of `generate` wherever a stage calls it."""
    world.generated = {"tokens": 0.0, "seconds": 0.0}

    def timed(*args: Any, **options: Any) -> list[Sample]:
        start = time.perf_counter()
        samples = generate(*args, **options)
        world.generated["seconds"] += time.perf_counter() - start
        world.generated["tokens"] += sum(len(sample.tokens) for sample in samples)
        return samples

    with (
        patch.object(responses, "generate", timed),
        patch.object(bench, "generate", timed),
    ):
        yield


def run_stage(world: World, row: Row, out: Path) -> Figures:
    """A stage's figures, seconds, speed, memory, and what it leaves on the device once it has ended."""
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with timed_sampling(world):
        figures = dict(row.run(world, out, Journal(out)))
    seconds = time.perf_counter() - start
    release_memory()
    results: Figures = {"figures": figures, "seconds": seconds, "same": row.same}
    if on_gpu:
        results["peak_bytes"] = torch.cuda.max_memory_allocated()
        results["left_bytes"] = torch.cuda.memory_allocated()
    return results | speed(world, row, out) | {"weights": weights_of(out) if row.same else []}


def speed(world: World, row: Row, out: Path) -> Figures:
    """Seconds of a step (median, the first left out), and tokens a second of steps or of sampling."""
    lines = [line for line in Journal(out).read() if line["step"] > 0]
    times = {line["step"]: line["timestamp_ms"] / 1000 for line in reversed(lines)}
    steps = sorted(times)
    spans = [(times[b] - times[a]) / (b - a) for a, b in pairwise(steps)][1:]
    figures: Figures = {"steps": len(steps), "step_seconds": median(spans) if spans else None}
    if row.step_tokens is not None and spans:
        figures["tokens_per_second"] = row.step_tokens(world.size) / max(figures["step_seconds"], 1e-3)
    logged = [line["values"] for line in lines if "tokens_per_second" in line["values"]]
    if logged:
        names = ("tokens_per_second", "seconds_sampling", "seconds_scoring", "seconds_update", "sampling_mismatch")
        figures |= {name: logged[-1][name] for name in names if name in logged[-1]}
    elif world.generated["tokens"] and row.step_tokens is None:
        figures["tokens_per_second"] = world.generated["tokens"] / world.generated["seconds"]
    return figures


def weights_of(out: Path) -> list[float]:
    """A few weights of each tensor of the model that a stage wrote."""
    from safetensors.torch import load_file

    tensors = load_file(out / "model" / "model.safetensors")
    flat = [tensor.flatten().double() for _, tensor in sorted(tensors.items())]
    return [value for tensor in flat for value in tensor[:: max(1, len(tensor) // SAMPLED)].tolist()]


def jobs(part: str, world: World, size: str, scratch: Path) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """What a part consists of, by name."""
    if part == "compare":
        for name, function in FUNCTIONS.items():
            yield name, partial(function, world)
    for name, row in ROWS.items():
        if size in row.sizes:
            yield name, partial(run_stage, world, row, scratch / name.replace(", ", "-"))


def main() -> None:
    """Run a part on a device, in a precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("compare", "measure"))
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="run jobs with this in their name alone")
    arguments = parser.parse_args()
    with computing(ComputeConfig(device=arguments.device, precision=arguments.precision)):
        work_through(arguments)


def work_through(arguments: argparse.Namespace) -> None:
    """Run the jobs of a part, and write the results after each."""
    world, results = World(arguments.world, SIZES[arguments.size]), dict[str, Figures]()
    for name, work in jobs(arguments.part, world, arguments.size, arguments.scratch):
        if arguments.only and arguments.only not in name:
            continue
        start = time.perf_counter()
        try:
            results[name] = work()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            traceback.print_exc()
        shutil.rmtree(arguments.scratch, ignore_errors=True)
        release_memory()
        print(f"{arguments.part} {device()} {name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        arguments.out.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
