"""What MLflow serves: a Hugging Face directory as a chat model or as a reward model. Logged as code, without pickles.

`mlflow models serve -m models:/policy@champion --env-manager local` takes rows with a `prompt`, and for a reward model
also a `response`; it returns the answer's text, or the normalised score. It needs torch and transformers alone.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas
import torch
from mlflow.pyfunc.model import PythonModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

DEFAULTS: dict[str, Any] = {"max_new_tokens": 128, "temperature": 1.0, "seed": 0}


class ServedModel(PythonModel):
    """One checkpoint, loaded once. Whether it answers or scores is read from its config."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer."""
        directory = Path(context.artifacts["hf"])
        architectures = AutoConfig.from_pretrained(directory).architectures or []
        self.scores = any("SequenceClassification" in name for name in architectures)
        kind = AutoModelForSequenceClassification if self.scores else AutoModelForCausalLM
        self.model = kind.from_pretrained(directory, use_safetensors=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """One text or one score a row."""
        options = DEFAULTS | (params or {})
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        if not self.scores:
            torch.manual_seed(int(options["seed"]))
            return [self._answer(prompt, options) for prompt in prompts]
        if "response" not in model_input:
            raise ValueError("a reward model scores a response: give a column `response` beside `prompt`")
        return [self._score(p, str(r)) for p, r in zip(prompts, model_input["response"], strict=True)]

    def _prompt_ids(self, prompt: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}]
        encoded: Any = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)
        return list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded)

    def _answer(self, prompt: str, options: dict[str, Any]) -> str:
        ids = torch.tensor([self._prompt_ids(prompt)])
        context = int(getattr(self.model.config, "max_position_embeddings", 1 << 30))
        room = context - ids.shape[1]
        if room < 1:
            raise ValueError(f"the prompt has {ids.shape[1]} tokens, the model reads {context}: shorten it")
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
        answer = [*self.tokenizer(response, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        ids = torch.tensor([[*self._prompt_ids(prompt), *answer]])
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        raw = float(self.model.score(hidden))
        config = self.model.config
        return (raw - float(getattr(config, "reward_bias", 0.0))) / float(getattr(config, "reward_scale", 1.0))


mlflow.models.set_model(ServedModel())
