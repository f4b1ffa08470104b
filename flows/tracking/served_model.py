"""The model that MLflow serves: a Hugging Face directory as a chat or reward model. Logged as code, without pickles.

`mlflow models serve -m models:/policy@champion --env-manager local` takes rows with a `prompt`, and for a reward model
also a `response`; it returns the answer's text, or the normalised score, combined over the members of an ensemble. It
needs only torch and transformers.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas
import torch
from mlflow.pyfunc.model import PythonModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

DEFAULTS: dict[str, Any] = {"max_new_tokens": 128, "temperature": 1.0, "seed": 0}
PLAIN: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length")  # none: no limit
PROMPT_MARK = "\ue000"  # a private-use character of Unicode: the placeholder of the prompt in the chat template


class Scorer:
    """A reward model: (w · h_T + (1/|y|) Σ_t (c + u · h_t) log p(y_t | x, y_<t) − bias) / scale, where the sum exists
    only for models with a likelihood term."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(directory, **PLAIN).eval()
        file = directory / "likelihood.safetensors"
        self.likelihood = load_file(file) if file.exists() else None

    def __call__(self, prompt: list[int], response: list[int]) -> float:
        """The normalised score of a response, given as token ids with EOS."""
        ids = torch.tensor([*prompt, *response])
        hidden = self.model.base_model(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
        raw = float(self.model.score(hidden[-1]))
        if self.likelihood is not None:
            raw += self._likelihood(self.likelihood, hidden, ids, len(prompt))
        config = self.model.config
        return (raw - float(getattr(config, "reward_bias", 0.0))) / float(getattr(config, "reward_scale", 1.0))

    @staticmethod
    def _likelihood(term: dict[str, Tensor], hidden: Tensor, ids: Tensor, start: int) -> float:
        head = term["language_head.weight"], term.get("language_head.bias")
        logits = functional.linear(hidden[start - 1 : -1], *head)
        logprobs = logits.log_softmax(-1).gather(-1, ids[start:, None])[:, 0]
        coefs = functional.linear(hidden[start:], term["coef.weight"], term["coef.bias"])[:, 0]
        return float((coefs * logprobs).mean())


class ServedModel(PythonModel):
    """One checkpoint, or the members of an ensemble, loaded once. Its config decides whether it generates or scores."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer."""
        directory = Path(context.artifacts["hf"])
        architectures = AutoConfig.from_pretrained(directory, trust_remote_code=False).architectures or []
        self.scores = any("SequenceClassification" in name for name in architectures)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if not self.scores:
            self.model = AutoModelForCausalLM.from_pretrained(directory, **PLAIN).eval()
            return
        others = [Path(path) for name, path in sorted(context.artifacts.items()) if name.startswith("member")]
        self.members = [Scorer(path) for path in (directory, *others)]
        self.combination: dict[str, Any] = {"combine": "mean"}
        if "ensemble" in context.artifacts:
            self.combination = json.loads(Path(context.artifacts["ensemble"]).read_text(encoding="utf-8"))

    @torch.no_grad()
    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Return a text or a score for each row."""
        options = DEFAULTS | (params or {})
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        if not self.scores:
            torch.manual_seed(int(options["seed"]))
            return [self._answer(prompt, options) for prompt in prompts]
        if "response" not in model_input:
            raise ValueError("a reward model scores a response: add a column `response` next to `prompt`")
        return [self._score(p, str(r)) for p, r in zip(prompts, model_input["response"], strict=True)]

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt as the user's turn. Text of the prompt never becomes a special token."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        if not any(token in prompt for token in special):
            turns = [{"role": "user", "content": prompt}]
            encoded: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
            return list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded)
        turns = [{"role": "user", "content": PROMPT_MARK}]
        frame = str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        before, after = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in frame.split(PROMPT_MARK)
        )
        return [*before, *self._plain_ids(prompt), *after]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _answer(self, prompt: str, options: dict[str, Any]) -> str:
        ids = torch.tensor([self._prompt_ids(prompt)])
        text = self.model.config.get_text_config(decoder=True)
        context = next((n for name in CONTEXT_NAMES if (n := getattr(text, name, None))), 1 << 30)
        room = context - ids.shape[1]
        if room < 1:
            raise ValueError(f"the prompt has {ids.shape[1]} tokens, but the model's context is {context}: shorten it")
        sampled = float(options["temperature"]) > 0
        tokens = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(int(options["max_new_tokens"]), room),
            do_sample=sampled,
            top_k=0 if sampled else None,
            temperature=float(options["temperature"]) if sampled else None,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return str(self.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)).strip()

    def _score(self, prompt: str, response: str) -> float:
        ids, answer = self._prompt_ids(prompt), [*self._plain_ids(response), self.tokenizer.eos_token_id]
        scores = torch.tensor([member(ids, answer) for member in self.members], dtype=torch.float64)
        if self.combination["combine"] == "worst":
            return float(scores.min())
        if self.combination["combine"] == "uncertainty":
            return float(scores.mean() - self.combination["combine_coef"] * scores.var(correction=0))
        return float(scores.mean())


mlflow.models.set_model(ServedModel())
