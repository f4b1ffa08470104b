"""The model that MLflow serves: a Hugging Face directory as a chat or reward model. Logged as code, without pickles.

`mlflow models serve -m models:/town-policy@champion --env-manager local` takes rows with a `prompt`, for a reward model
also a `response`; it returns the answer's text, or the normalised score, combined over the members of an ensemble. A
prompt is a text, or a conversation: a list of turns with `role` and `content`. The package `alignment` is logged beside
it, so that prompts, ends of turns and scores are those of training.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel
from pydantic import ValidationError
from transformers import AutoConfig

from alignment.models.architecture import longest_sequence
from alignment.models.chat import load_chat
from alignment.models.ensembles import Ensemble
from alignment.models.generation import generate
from alignment.models.safe_loading import NEVER_CODE
from alignment.models.scalar import load_causal_model, load_scalar_model, reward_scores
from alignment.records import Message, Prompt

DEFAULTS: dict[str, Any] = {"max_new_tokens": 128, "temperature": 1.0, "seed": 0}


class ServedModel(PythonModel):
    """One checkpoint, or the members of an ensemble, loaded once. Its config decides whether it generates or scores."""

    def load_context(self, context: Any) -> None:
        """Load weights (safetensors) and tokenizer."""
        directory = Path(context.artifacts["hf"])
        architectures = AutoConfig.from_pretrained(directory, **NEVER_CODE).architectures or []
        self.scores = any("SequenceClassification" in name for name in architectures)
        self.chat = load_chat(directory)
        if not self.scores:
            self.model = load_causal_model(directory)
            return
        self.reward: Any = load_scalar_model(directory)
        if "ensemble" in context.artifacts:
            ensemble = json.loads(Path(context.artifacts["ensemble"]).read_text(encoding="utf-8"))
            others = [context.artifacts[f"member_{number}"] for number in range(1, ensemble["members"])]
            members = (self.reward, *map(load_scalar_model, others))
            self.reward = Ensemble(members, ensemble["combine"], ensemble["combine_coef"])

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Return a text or a score for each row."""
        turns = [conversation(prompt, number) for number, prompt in enumerate(model_input["prompt"])]
        if not self.scores:
            return self._answers(turns, DEFAULTS | (params or {}))
        if "response" not in model_input:
            raise MlflowException.invalid_parameter_value(
                "a reward model scores a response: add a column `response` next to `prompt`"
            )
        rows = [self.chat.turn(t, str(r)) for t, r in zip(turns, model_input["response"], strict=True)]
        scores = reward_scores(self.reward, [row.ids for row in rows], [len(row.prompt) for row in rows])
        return list(scores.tolist())

    def _answers(self, turns: Sequence[tuple[Message, ...]], options: dict[str, Any]) -> list[str]:
        prompts = [self.chat.prompt(messages) for messages in turns]
        context = longest_sequence(self.model)
        longest = max(map(len, prompts), default=0)
        if longest >= context:
            raise MlflowException.invalid_parameter_value(
                f"a prompt has {longest} tokens, but the model's context is {context}: shorten it"
            )
        samples = generate(
            self.model,
            prompts,
            max_new_tokens=int(min(int(options["max_new_tokens"]), context - longest)),
            eos_token_ids=self.chat.end_ids,
            pad_token_id=self.chat.pad_token_id,
            temperature=float(options["temperature"]),
            generator=torch.Generator(device=self.model.device).manual_seed(int(options["seed"])),
        )
        return [self.chat.decode(sample.tokens) for sample in samples]


def conversation(prompt: object, row: int) -> tuple[Message, ...]:
    """The turns of a prompt: a text is the user's only turn. Raises MlflowException, which a server answers as 400."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        return Prompt.model_validate({"id": "served", "messages": turns}).messages
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        raise MlflowException.invalid_parameter_value(
            f"row {row}: `prompt` is neither a text nor a list of turns with `role` and `content` that ends with the "
            f"user's ({where}{': ' if where else ''}{first['msg']})"
        ) from error


mlflow.models.set_model(ServedModel())
