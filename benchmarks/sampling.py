"""Sampling beside transformers' `generate`: the same model, prompts and batch, in turn, tokens per second of CPU time.

    python -m benchmarks.sampling                      # SmolLM2-135M-Instruct, float32 and bfloat16, batch 16 and 64
    python -m benchmarks.sampling --model DIR --rounds 5

The first run makes the checkpoint under `.bench/`. Responses end at different times where a share of the vocabulary
counts as EOS. Both sides read the same padded prompts, and tokens are counted up to each response's end; ours also
returns log-probabilities. Results go to `.bench/sampling.json` and, as a table, to standard output.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from alignment.models.generation import generate
from benchmarks.machine import processor, versions

HOME = Path(__file__).parent.parent / ".bench"
PROMPT_TOKENS = (16, 64)
PAD = 2


@dataclass(frozen=True)
class Work:
    """What both sides do: `ending` is the share of the vocabulary that ends a response."""

    dtype: str
    batch: int
    sampled: bool
    ending: float
    max_new_tokens: int

    @property
    def name(self) -> str:
        lengths = "different lengths" if self.ending else "full lengths"
        return f"{self.dtype}, batch {self.batch}, {'sampled' if self.sampled else 'greedy'}, {lengths}"


def main(
    model: Annotated[Path | None, typer.Option(help="a checkpoint; SmolLM2-135M-Instruct if omitted")] = None,
    rounds: Annotated[int, typer.Option(help="how often each side runs, in turn with the other")] = 3,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
    batch: Annotated[list[int], typer.Option(help="responses at a time; can be repeated")] = [16, 64],  # noqa: B006
    dtype: Annotated[list[str], typer.Option(help="can be repeated")] = ["float32", "bfloat16"],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="the longest response")] = 48,
    ending: Annotated[list[float], typer.Option(help="share of tokens that are EOS; repeatable")] = [0, 0.03],  # noqa: B006
) -> None:
    """Run all combinations and print a table."""
    torch.set_num_threads(threads)
    path, results = model or _smollm2(), []
    for name in dtype:
        network = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, name), trust_remote_code=False).eval()
        for size, sampled, share in product(batch, (False, True), ending):
            work = Work(name, size, sampled, share, tokens)
            results.append(asdict(work) | measured(network, work, rounds))
            print(_row(work.name, results[-1]), file=sys.stderr, flush=True)
    facts = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "threads": threads, "rounds": rounds}
    HOME.mkdir(exist_ok=True)
    content = {"machine": facts | {"versions": versions()}, "results": results}
    (HOME / "sampling.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print("| work | generate | ours | ours / generate |\n|---|---|---|---|")
    for result in results:
        work = Work(**{name: result[name] for name in Work.__dataclass_fields__})
        print(_row(work.name, result))


def measured(model: PreTrainedModel, work: Work, rounds: int) -> dict[str, float]:
    """Medians of tokens per CPU second of both sides, and of their ratio within a round."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(*PROMPT_TOKENS, (work.batch,), generator=random).tolist()
    prompts = [torch.randint(3, vocabulary, (length,), generator=random).tolist() for length in lengths]
    ends = torch.randperm(vocabulary, generator=random)[: int(work.ending * vocabulary)].tolist()
    sides = (lambda: theirs(model, prompts, ends, work), lambda: ours(model, prompts, ends, work))
    rates = [[_rate(side) for side in sides] for _ in range(rounds)]
    generate_rate, our_rate = (median(rate[side] for rate in rates) for side in (0, 1))
    return {"generate": generate_rate, "ours": our_rate, "ratio": median(b / a for a, b in rates)}


def theirs(model: PreTrainedModel, prompts: list[list[int]], ends: list[int], work: Work) -> int:
    """Tokens that `generate` returns up to the end of each response."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = GenerationConfig(
        max_new_tokens=work.max_new_tokens, do_sample=work.sampled, top_k=0, pad_token_id=PAD, eos_token_id=ends or None
    )
    output = model.generate(ids, attention_mask=mask, generation_config=options)  # type: ignore[operator]
    output = output[:, longest:]
    ended = torch.isin(output, torch.tensor(ends, dtype=torch.long))
    return sum(int(row.int().argmax()) + 1 if row.any() else len(row) for row in ended)


def ours(model: PreTrainedModel, prompts: list[list[int]], ends: list[int], work: Work) -> int:
    """Tokens that `alignment` samples for the same prompts."""
    random = torch.Generator().manual_seed(1)
    samples = generate(
        model,
        prompts,
        max_new_tokens=work.max_new_tokens,
        eos_token_ids=ends,
        pad_token_id=PAD,
        temperature=1.0 if work.sampled else 0.0,
        uniforms=torch.rand(len(prompts), work.max_new_tokens, dtype=torch.float64, generator=random),
        batch_size=work.batch,
    )
    return sum(len(sample.tokens) for sample in samples)


def _rate(side: Callable[[], int]) -> float:
    start = time.process_time()
    return side() / (time.process_time() - start)


def _row(name: str, result: dict[str, float]) -> str:
    return f"| {name} | {result['generate']:.1f} | {result['ours']:.1f} | {result['ratio']:.2f} |"


def _smollm2() -> Path:
    from tests.real_model import smollm2

    (HOME / "smollm2").mkdir(parents=True, exist_ok=True)
    return smollm2(HOME / "smollm2")


if __name__ == "__main__":
    typer.run(main)
