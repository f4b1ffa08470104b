"""Reward functions in TRL's signature: what they are passed, and what is made of what they return."""

import pytest
from datasets import Dataset

from alignment.errors import ConfigError, DataError, TrainingError
from alignment.ppo.train import train_ppo
from alignment.rewards.components import RuleReward
from tests.alignment.ppo import world

TEXT = Dataset.from_dict({"prompt": ["w3 w4", "w5"], "answer": ["w7", "w9"]})
CHAT = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w3 w4"}]], "answer": ["w7"]})
TEMPLATE = "{% for m in messages %}w2 {{ m.content }} {% endfor %}w6"


def run(tmp_path, reward, prompts=TEXT):
    tokenizer = world.tokenizer()
    tokenizer.chat_template = TEMPLATE
    options = world.config(steps=1, batch_size=4, minibatch_size=4)
    return train_ppo(world.policy(), tokenizer, prompts, reward, options, out=tmp_path).metrics


def test_text_and_columns_are_passed_by_name(tmp_path) -> None:
    seen = {}

    def reward(completions, prompts, **kwargs):  # in the other order
        seen.update(prompts=prompts, completions=completions, **kwargs)
        return [float(len(text.split())) for text in completions]

    metrics = run(tmp_path, reward)
    assert sorted(zip(seen["prompts"], seen["answer"], strict=True)) == [("w3 w4", "w7")] * 2 + [("w5", "w9")] * 2
    assert seen.keys() == {"prompts", "completions", "completion_ids", "answer"}
    assert all(isinstance(text, str) for text in seen["completions"])
    ended = [ids[-1] == world.EOS for ids in seen["completion_ids"]]
    words = [len(ids) - end for ids, end in zip(seen["completion_ids"], ended, strict=True)]
    assert metrics["reward/reward"] == pytest.approx(sum(len(text.split()) for text in seen["completions"]) / 4)
    assert all(count >= len(text.split()) for count, text in zip(words, seen["completions"], strict=True))


def test_conversations_are_passed_as_messages(tmp_path) -> None:
    def reward(prompts, completions, answer):
        assert prompts == [[{"role": "user", "content": "w3 w4"}]] * 4 and answer == ["w7"] * 4
        return [turns[0]["content"].count("w") if turns[0]["role"] == "assistant" else -1 for turns in completions]

    assert run(tmp_path, reward, CHAT)["reward"] >= 0


def test_token_ids_as_prompts_are_passed_as_text(tmp_path) -> None:
    def reward(prompts, completions, **kwargs):
        assert kwargs.keys() == {"completion_ids"} and {*prompts} <= {"w3 w4", "w5"}
        return [0.25] * len(completions)

    assert run(tmp_path, reward, [[3, 4], [5]])["reward"] == 0.25


def test_a_function_of_ids_alone(tmp_path) -> None:
    assert run(tmp_path, lambda completion_ids, **_: [len(ids) for ids in completion_ids])["reward"] >= 1


def test_parameters_without_a_name(tmp_path) -> None:
    def both(prompts, /, completions, **columns):
        assert {*prompts} <= {"w3 w4", "w5"} and columns.keys() == {"completion_ids", "answer"}
        return [0.25] * len(completions)

    def one(completions, answer, /):
        assert {*answer} <= {"w7", "w9"}
        return [0.25] * len(completions)

    assert run(tmp_path / "both", both)["reward"] == run(tmp_path / "one", one)["reward"] == 0.25
    with pytest.raises(ConfigError, match="asks for 'solution'"):
        run(tmp_path, lambda completions, solution, /: [])
    assert run(tmp_path / "c", lambda completions, solution=None, /: [0.5] * len(completions))["reward"] == 0.5


def test_none_adds_nothing(tmp_path) -> None:
    def reward(completions, answer, **kwargs):
        return [1.0 if word == "w7" else None for word in answer]

    assert run(tmp_path, [RuleReward("sometimes", 1.0, reward)])["reward/sometimes"] == 0.5


def test_what_cannot_be_called_is_refused_with_both_signatures(tmp_path) -> None:
    async def later(prompts, completions): ...

    for wrong, words in ((lambda text: 0.0, "takes"), (lambda a, b, c: [], "takes"), (later, "asynchronous")):
        with pytest.raises(ConfigError, match=rf"{words}.*def reward\(prompts: list\[str\].*prompts, completions"):
            run(tmp_path, wrong)


def test_a_column_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"asks for 'solution', and the prompts have the columns \['answer'\]"):
        run(tmp_path, lambda completions, solution: [])
    with pytest.raises(ConfigError, match=r"asks for 'answer', and the prompts have the columns \[\]"):
        run(tmp_path, lambda completions, answer: [], [[3, 4]])
    assert run(tmp_path, lambda completions, solution=None: [0.5] * len(completions))["reward"] == 0.5


def test_rows_that_only_a_column_tells_apart_are_refused(tmp_path) -> None:
    twice = Dataset.from_dict({"prompt": ["w3", "w3"], "answer": ["w7", "w9"]})
    for reward in (lambda completions, answer: [], lambda completions, **_: []):
        with pytest.raises(DataError, match="prompt 1 reads as an earlier one and has another 'answer'"):
            run(tmp_path, reward, twice)
    assert run(tmp_path, lambda prompts, completions: [0.5] * 4, twice)["reward"] == 0.5


def test_a_wrong_count_is_an_error_in_words(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"returned 1 values for 4 responses"):
        run(tmp_path, lambda prompts, completions: [1.0])
