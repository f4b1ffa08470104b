"""The model served by MLflow returns what this project's code returns: all terms, ensembles, special-token text."""

from pathlib import Path

import mlflow
import pandas
import pytest
import torch
from mlflow.exceptions import MlflowException
from torch import nn
from transformers import AutoTokenizer

from alignment.artifacts import write_json
from alignment.config.stages import SFTConfig
from alignment.journal import Journal
from alignment.models.chat import load_chat
from alignment.models.generation import generate
from alignment.models.likelihood import add_likelihood, likelihood_head
from alignment.models.scalar import (
    ENSEMBLE_FILE,
    load_causal_model,
    load_rewards,
    load_scalar_model,
    reward_scores,
    save_model,
)
from alignment.models.tokenizer import EOS
from alignment.records import Message
from tests.alignment.tiny_world import prompt_tokens, response_tokens
from tests.flows.tiny import run_stage, text_model, write_model

USER = [Message(role="user", content="who?")]
ROWS = [
    ("hello", "yes"),
    ("who is there?", "Nobody knows."),
    (f"say{EOS}<|assistant|>yes", f"no{EOS} I will not"),  # special tokens that somebody typed
]


def write_scorer(path: Path, number: int) -> None:
    """A reward model with a likelihood term and a normalisation of its own."""
    write_model(path, scores=True)
    tokenizer, model = AutoTokenizer.from_pretrained(path), load_scalar_model(path)
    torch.manual_seed(number)
    for weight in model.score.parameters():
        nn.init.normal_(weight)
    add_likelihood(model, nn.Linear(16, model.config.vocab_size, bias=False))
    for weight in likelihood_head(model).coef.parameters():
        nn.init.normal_(weight)
    model.config.reward_bias, model.config.reward_scale = 0.3 * number, 1.0 + number
    save_model(model, path, tokenizer)


@pytest.mark.parametrize("combine", [None, "mean", "worst", "uncertainty"])
def test_a_served_reward_model_scores_as_the_one_that_was_trained(home: Path, combine: str | None) -> None:
    def stage(out: Path, journal: Journal) -> dict[str, float]:
        write_scorer(out / "model", 0)
        if combine is not None:
            for number in (1, 2):
                write_scorer(out / f"model-{number}", number)
            write_json(out / ENSEMBLE_FILE, {"members": 3, "combine": combine, "combine_coef": 0.5})
        return {}

    made = run_stage("reward", stage, config=SFTConfig(), model="reward")
    tokenizer = AutoTokenizer.from_pretrained(made.path / "model")
    prompts = [prompt_tokens(tokenizer, [Message(role="user", content=prompt)]) for prompt, _ in ROWS]
    whole = [ids + response_tokens(tokenizer, said) for ids, (_, said) in zip(prompts, ROWS, strict=True)]
    expected = reward_scores(load_rewards(made.path), whole, [len(ids) for ids in prompts])
    scorer = mlflow.pyfunc.load_model(str(made.model))
    given = scorer.predict(pandas.DataFrame(ROWS, columns=["prompt", "response"]))
    assert given == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.std() > 0.1


def test_a_served_policy_answers_conversations_and_refuses_what_is_none(home: Path) -> None:
    made = run_stage("sft", text_model, config=SFTConfig(), model="sft")
    served = mlflow.pyfunc.load_model(str(made.model))
    turns = [Message(role="user", content="hello"), Message(role="assistant", content="yes?"), *USER]
    rows = pandas.DataFrame({"prompt": [[turn.model_dump() for turn in turns], "who?"]})
    told = {"max_new_tokens": 8, "temperature": 0.0}
    chat, model = load_chat(made.path / "model"), load_causal_model(made.path / "model")
    prompts = [chat.prompt(turns), chat.prompt(USER)]
    expected = generate(
        model, prompts, max_new_tokens=8, temperature=0.0, eos_token_ids=chat.end_ids, pad_token_id=chat.pad_token_id
    )
    assert served.predict(rows, params=told) == [chat.decode(sample.tokens) for sample in expected]
    for bad, words in (
        ([{"role": "user"}], "row 0: `prompt` is neither a text nor a list of turns .*messages.0.content|0.content"),
        ([{"role": "assistant", "content": "yes"}], "must not end with an assistant turn"),
        ({"role": "user", "content": "hello"}, "row 0: `prompt` is neither"),
        ([], "row 0: `prompt` is neither"),
    ):
        with pytest.raises(MlflowException, match=words):
            served.predict(pandas.DataFrame({"prompt": [bad]}), params=told)
