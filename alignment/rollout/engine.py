"""What an engine does, and the two that work in this process: this project's sampler and transformers' `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from alignment.models.generation import Sample, check_prompts_fit, generate
from alignment.models.heads import at_least_float32

SEEDS = 2**53  # that a number in double precision tells apart


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled, whatever the engine. `batch_size` is that of an engine in this process."""

    max_new_tokens: int
    temperature: float
    eos_token_ids: frozenset[int]
    batch_size: int


class Engine(Protocol):
    """Samples responses to prompts, with the log-probability of each token as the engine computed it."""

    has_own_weights: bool  # update_weights must be called after an update of the policy

    def update_weights(self, step: int, policy: PreTrainedModel) -> None:
        """Sample from these weights from now on. Called by the main process alone."""

    def sample(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms: Tensor
    ) -> list[Sample]:
        """One response for each prompt. `uniforms`, (prompts, max_new_tokens) in [0, 1), decide all that is random."""

    def close(self) -> None:
        """Free what the engine holds."""


class NativeEngine:
    """This project's sampler: a response is a function of its own uniforms, whatever its batch."""

    has_own_weights = False

    def update_weights(self, step: int, policy: PreTrainedModel) -> None:
        """Nothing: it samples from the policy itself."""

    def sample(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms: Tensor
    ) -> list[Sample]:
        """By `alignment.models.generation.generate`."""
        return generate(
            policy,
            prompts,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_ids=sampling.eos_token_ids,
            temperature=sampling.temperature,
            uniforms=uniforms,
            batch_size=sampling.batch_size,
        )

    def close(self) -> None:
        """Nothing."""


class TransformersEngine:
    """transformers' `generate`. A batch's random numbers come from one seed, so a response depends on its batch."""

    has_own_weights = False

    def update_weights(self, step: int, policy: PreTrainedModel) -> None:
        """Nothing: it samples from the policy itself."""

    @torch.no_grad()
    def sample(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms: Tensor
    ) -> list[Sample]:
        """In batches of prompts of similar length."""
        check_prompts_fit(policy, prompts, sampling.max_new_tokens)
        samples: dict[int, Sample] = {}
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        for start in range(0, len(order), sampling.batch_size):
            rows = order[start : start + sampling.batch_size]
            with torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
                torch.manual_seed(seed_of(uniforms[rows[0]]))
                samples.update(zip(rows, _generated(policy, [prompts[i] for i in rows], sampling), strict=True))
        return [samples[i] for i in range(len(prompts))]

    def close(self) -> None:
        """Nothing."""


def seed_of(uniforms: Tensor) -> int:
    """The seed of a response, from its first uniform. Shape: (T,)."""
    return int(uniforms[0].double() * SEEDS)


def _generated(policy: PreTrainedModel, prompts: list[Sequence[int]], sampling: Sampling) -> list[Sample]:
    longest = max(map(len, prompts))
    pad = min(sampling.eos_token_ids)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=policy.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    recorder = _Recorder(sampling.temperature)
    options = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad,
        eos_token_id=sorted(sampling.eos_token_ids),
        use_cache=True,
    )
    with _without_defaults(policy):
        output = policy.generate(  # type: ignore[operator]
            ids, attention_mask=mask, generation_config=options, logits_processor=LogitsProcessorList([recorder])
        )
    assert isinstance(output, Tensor)
    responses = output[:, longest:]
    logprobs = recorder.logprobs(responses)
    samples = []
    for tokens, values in zip(responses.tolist(), logprobs.tolist(), strict=True):
        end = next((t for t, token in enumerate(tokens) if token in sampling.eos_token_ids), None)
        length = len(tokens) if end is None else end + 1
        samples.append(Sample(tokens[:length], values[:length], end is not None))
    return samples


@contextmanager
def _without_defaults(policy: PreTrainedModel) -> Iterator[None]:
    """Options that `generate` is not told would come from the checkpoint's generation_config.json (a penalty, say)."""
    defaults, policy.generation_config = policy.generation_config, GenerationConfig()
    try:
        yield
    finally:
        policy.generation_config = defaults


class _Recorder(LogitsProcessor):
    """Divides logits by the temperature, and keeps the log-probabilities of the tokens that were drawn from them."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.columns: list[Tensor] = []
        self.last: Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.last is not None:
            self.columns.append(self.last.gather(-1, input_ids[:, -1:]))
        scaled = at_least_float32(scores) / self.temperature
        self.last = scaled.log_softmax(-1)
        return scaled  # type: ignore[return-value]

    def logprobs(self, responses: Tensor) -> Tensor:
        """Of all response tokens. Shapes: (b, t) -> (b, t)."""
        assert self.last is not None
        return torch.cat([*self.columns, self.last.gather(-1, responses[:, -1:])], dim=-1)
