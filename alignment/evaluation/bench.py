"""The inputs of every evaluator: the models, the prompts, reward and gold judge, and the sampled responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.stages import EvaluationConfig
from alignment.errors import DataError
from alignment.evaluation.judged_responses import Judge, JudgedResponse, sequence_kl, verdict
from alignment.models.ensembles import Ensemble
from alignment.models.generation import generate
from alignment.models.scalar import reward_scores
from alignment.models.tokenizer import decode_response, prompt_tokens
from alignment.records import Prompt

Report = Mapping[str, Any]  # evaluation.json
Plot = Callable[[Report], Figure]


@dataclass(frozen=True)
class Models:
    """The models that are compared."""

    base: PreTrainedModel
    sft: PreTrainedModel
    policy: PreTrainedModel

    def by_name(self) -> dict[str, PreTrainedModel]:
        """Each model by its name in the report."""
        return dict(vars(self))


@dataclass(frozen=True)
class Bench:
    """The inputs shared by all evaluators.

    `reference` is SFT, to which KL is measured. `policy` and `corpus` are the directories of those stages' outputs,
    `out` is the evaluation's own. `judge` is None without a gold standard.
    """

    config: EvaluationConfig
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel
    reward: PreTrainedModel | Ensemble
    judge: Judge | None
    seed: int
    prompts: Sequence[Prompt]
    policy: Path
    corpus: Path
    out: Path
    _responses: dict[PreTrainedModel, list[JudgedResponse]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def curve_prompts(self) -> Sequence[Prompt]:
        """The prompts for measurements that are repeated for many policies."""
        return self.prompts[: self.config.curve_prompts]

    def responses(self, model: PreTrainedModel) -> list[JudgedResponse]:
        """`samples_per_prompt` responses of a model to each prompt, in the order of the prompts; sampled once."""
        if model not in self._responses:
            self._responses[model] = self.sample(model, self.prompts, self.config.samples_per_prompt)
        return self._responses[model]

    def sample(self, model: PreTrainedModel, prompts: Sequence[Prompt], count: int) -> list[JudgedResponse]:
        """Sample, score and judge `count` responses to each prompt. Deterministic by the bench's seed."""
        tokenizer, temperature = self.tokenizer, self.config.temperature
        repeated = [prompt for prompt in prompts for _ in range(count)]
        prompt_ids = [prompt_tokens(tokenizer, prompt.messages) for prompt in repeated]
        samples = generate(
            model,
            prompt_ids,
            max_new_tokens=self.config.max_new_tokens,
            temperature=temperature,
            eos_token_ids=[int(tokenizer.eos_token_id)],
            pad_token_id=int(tokenizer.pad_token_id),
            generator=torch.Generator(device=model.device).manual_seed(self.seed),
        )
        sequences = [ids + sample.tokens for ids, sample in zip(prompt_ids, samples, strict=True)]
        rewards = reward_scores(self.reward, sequences, [len(ids) for ids in prompt_ids]).tolist()
        kls = sequence_kl(self.reference, prompt_ids, samples, temperature)
        texts = [decode_response(tokenizer, sample.tokens) for sample in samples]
        return [
            JudgedResponse(
                prompt_id=prompt.id,
                kind=prompt.kind,
                prompt=prompt.text,
                response=text,
                tokens=len(sample.tokens),
                ended=sample.ended,
                reward=reward,
                kl=kl,
                gold=None if self.judge is None else verdict(self.judge, prompt, text),
            )
            for prompt, text, sample, reward, kl in zip(repeated, texts, samples, rewards, kls, strict=True)
        ]


@dataclass(frozen=True)
class Figures:
    """The results of an evaluator.

    report:  entries of `evaluation.json`; None for values that were not measured
    metrics: the part that is logged as the stage's metrics, nested names joined by dots; None: all numbers of `report`
    plots:   drawn from the whole report after the last evaluator, and saved as `figures/NAME.png`; evaluators that
             use the same name share a plot
    """

    report: Report
    metrics: Report | None = None
    plots: Mapping[str, Plot] = field(default_factory=dict)


Evaluator = Callable[[Bench, Models], Figures]


def not_measured(*names: str) -> Figures:
    """The results of an evaluator that needs a gold judge, without one: null in the report, no metrics."""
    return Figures(dict.fromkeys(names))


def prompts_that_fit(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, context: float, max_new_tokens: int
) -> list[Prompt]:
    """The prompts that leave room for a response in the context (in tokens). Raises DataError if there is none."""
    longest = context - max_new_tokens
    fitting = [prompt for prompt in prompts if len(prompt_tokens(tokenizer, prompt.messages)) <= longest]
    if not fitting:
        raise DataError(
            f"none of {len(prompts)} held-out prompts leaves room for {max_new_tokens} tokens; "
            "lower `evaluation.max_new_tokens` or raise `prompts.heldout_share`"
        )
    return fitting
