"""Sampling by a vLLM server: token ids in and out over HTTP, and new weights as safetensors in a directory.

vLLM works in an environment of its own, with a checkpoint of the policy's architecture and `VLLM_SERVER_DEV_MODE=1`.
Calls that are relied on:

- `GET /health` and `GET /v1/models` (`id`, `max_model_len`);
- `POST /v1/completions` with `prompt` as token ids, `stop_token_ids`, `ignore_eos`, `seed`, `logprobs: 0` and
  `return_token_ids`; the answer's `choices[0]` has `token_ids` and `logprobs.token_logprobs`;
- `POST /pause`, which aborts what is running and clears the prefix cache, `POST /collective_rpc` with the method
  `reload_weights` and its argument `weights_path`, and `POST /resume`.

One request is one response with its own seed, so that a repeated request gives the same response.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.rollout import RolloutConfig
from alignment.errors import ConfigError, TrainingError
from alignment.models.generation import Sample
from alignment.models.lora import has_adapter, merged
from alignment.models.scalar import save_model
from alignment.records import first_problem
from alignment.rollout.engine import Sampling, seed_of

KEY = "RLHF_VLLM_API_KEY"
LONGEST_PAUSE_SECONDS = 5.0
KEPT = 2  # directories of weights: the one that is loaded, and the one before, which a resumed run may still read
SHOWN = 300  # characters of an answer in an error

log = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Unavailable(Exception):
    """The server could not be reached, or reported an internal error: it may recover."""


class _Logprobs(BaseModel):
    token_logprobs: list[float]


class _Choice(BaseModel):
    token_ids: list[int] = Field(min_length=1)
    logprobs: _Logprobs
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class VLLMEngine:
    """A vLLM server at an address, and the weights that it was given last."""

    has_own_weights = True

    def __init__(
        self, url: str, options: RolloutConfig, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"the address of the vLLM server is {url!r}: write it as in http://localhost:8000")
        self.url, self.options, self.directory, self.tokenizer = url, options, directory, tokenizer
        key = os.environ.get(KEY)
        self.client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(options.timeout_seconds, connect=10),
            limits=httpx.Limits(max_connections=options.requests),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
        )
        self.weights: Path | None = None
        self.doubtful = False  # the server was away, and may have come back with the weights that it was started with

    def update_weights(self, step: int, policy: PreTrainedModel) -> None:
        """Write the weights (adapters merged), have the server load them, and delete those before the last ones."""
        path = self.directory / f"weights-{step:05d}"
        write_weights(policy, path, self.tokenizer)
        self.weights = path
        self._patiently(self._load)
        for old in sorted(self.directory.glob("weights-*"))[:-KEPT]:
            shutil.rmtree(old)

    def sample(
        self, policy: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms: Tensor
    ) -> list[Sample]:
        """One request for each prompt; all again where the server was away meanwhile."""
        embeddings = policy.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        seeds = [seed_of(row) for row in uniforms]
        return self._patiently(lambda: self._sample_all(prompts, seeds, sampling, len(embeddings)))

    def close(self) -> None:
        """Close the connections; the server goes on."""
        self.client.close()

    def _sample_all(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, vocabulary: int
    ) -> list[Sample]:
        if self.doubtful and self.weights is not None:
            self._load()
        model = self._model(max(map(len, prompts)) + sampling.max_new_tokens)

        def sample(prompt: Sequence[int], seed: int) -> Sample:
            request = completion_request(model, prompt, seed, sampling)
            return checked_sample(self._post("/v1/completions", _Completion, request), sampling, vocabulary, self.url)

        with ThreadPoolExecutor(self.options.requests) as pool:
            futures = [pool.submit(sample, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _model(self, length: int) -> str:
        """The name of the model that is served. Raises ConfigError if it takes fewer than `length` tokens."""
        model = self._answer("GET", "/v1/models", _Models).data[0]
        if model.max_model_len is not None and length > model.max_model_len:
            raise ConfigError(
                f"the longest prompt and its response have {length} tokens, and the server at {self.url} takes "
                f"{model.max_model_len}: start it with --max-model-len {length} or more, or shorten them"
            )
        return model.id

    def _load(self) -> None:
        """Have the server read the weights. What it computed with others, the prefix cache too, is dropped."""
        assert self.weights is not None
        arguments = {"weights_path": str(self.weights.resolve()), "is_checkpoint_format": True}
        self._request("POST", "/pause")
        self._request("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
        self._request("POST", "/resume")
        self.doubtful = False

    def _patiently(self, work: Callable[[], T]) -> T:
        """Repeat `work` while the server is unavailable, for `patience_seconds` at most."""
        start, pause = time.monotonic(), 0.25
        while True:
            try:
                return work()
            except Unavailable as error:
                self.doubtful = True
                waited = time.monotonic() - start
                if waited > self.options.patience_seconds:
                    raise TrainingError(
                        f"the vLLM server at {self.url} was not available for {waited:.0f} seconds ({error}): look at "
                        "its log and start it again (docs/rollout.md); ppo.rollout.patience_seconds says how long "
                        "to wait"
                    ) from error
                log.warning("the vLLM server at %s is not available (%s); trying again", self.url, error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _post(self, path: str, form: type[M], body: dict[str, object]) -> M:
        return self._answer("POST", path, form, body)

    def _answer(self, method: str, path: str, form: type[M], body: dict[str, object] | None = None) -> M:
        response = self._request(method, path, body)
        try:
            return form.model_validate_json(response.content)
        except ValidationError as error:
            raise TrainingError(
                f"the server at {self.url} answered {path} with {response.text[:SHOWN]!r}, which is no answer of "
                f"vLLM's ({first_problem(error)}): check the address, and that its version is one of docs/rollout.md"
            ) from error

    def _request(self, method: str, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        try:
            response = self.client.request(method, path, json=body)
        except httpx.ReadTimeout as error:
            raise TrainingError(
                f"the vLLM server at {self.url} did not answer {path} within {self.options.timeout_seconds:g} seconds: "
                "raise ppo.rollout.timeout_seconds, or lower ppo.rollout.requests"
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(f"{path}: {type(error).__name__} {error}".strip()) from error
        if response.status_code >= 500 or response.status_code == 429:
            raise Unavailable(f"{path}: status {response.status_code}, {response.text[:SHOWN]!r}")
        if response.status_code >= 400:
            hint = "; start it with VLLM_SERVER_DEV_MODE=1, and leave /v1 out of the address"
            hint = hint if response.status_code == 404 else ""
            raise TrainingError(
                f"the server at {self.url} refused {method} {path} with status {response.status_code}: "
                f"{response.text[:SHOWN]!r}{hint} (docs/rollout.md)"
            )
        return response


def completion_request(model: str, prompt: Sequence[int], seed: int, sampling: Sampling) -> dict[str, object]:
    """The request for one response. The server's own defaults (of generation_config.json) must not act."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "ignore_eos": True,  # the stop tokens are ours, not those of the checkpoint that it was started with
        "stop_token_ids": sorted(sampling.eos_token_ids),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def checked_sample(completion: _Completion, sampling: Sampling, vocabulary: int, url: str) -> Sample:
    """The sample of an answer. Raises TrainingError for one that cannot be a response to the request."""
    choice = completion.choices[0]
    tokens, logprobs = choice.token_ids, choice.logprobs.token_logprobs
    ended = tokens[-1] in sampling.eos_token_ids
    problems = (
        (len(tokens) != len(logprobs), f"{len(tokens)} tokens with {len(logprobs)} log-probabilities"),
        (not all(0 <= token < vocabulary for token in tokens), f"token ids outside the policy's 0 to {vocabulary - 1}"),
        (not all(math.isfinite(p) and p <= 1e-3 for p in logprobs), "log-probabilities above 0 or not finite"),
        (any(token in sampling.eos_token_ids for token in tokens[:-1]), "tokens after a stop token"),
        (len(tokens) > sampling.max_new_tokens, f"{len(tokens)} tokens where {sampling.max_new_tokens} were wanted"),
        (
            not ended and len(tokens) < sampling.max_new_tokens,
            f"{len(tokens)} tokens without a stop token, finish_reason {choice.finish_reason!r}",
        ),
    )
    for wrong, description in problems:
        if wrong:
            raise TrainingError(
                f"the server at {url} answered with {description}: check that it serves this policy's architecture and "
                "vocabulary, and that its version is one of docs/rollout.md"
            )
    return Sample(tokens, logprobs, ended)


def write_weights(policy: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """The policy as a plain checkpoint, adapters merged; written beside `path` and renamed."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_model(merged(policy) if has_adapter(policy) else policy, partial, tokenizer)
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
