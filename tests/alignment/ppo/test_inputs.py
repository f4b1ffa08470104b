"""Invalid inputs are refused, with a message that says what to do."""

import math

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from tokenizers.processors import TemplateProcessing

from alignment.errors import CheckpointError, ConfigError, DataError, RLHFError, TrainingError
from alignment.models.chat import ChatFormat
from alignment.models.scalar import load_scalar_model, save_model, scalar_model_from
from alignment.ppo.config import PPOConfig
from alignment.ppo.prompts import cycled_rows, tokenized_prompts
from alignment.ppo.schedule import learning_rate_share
from alignment.ppo.train import train_ppo
from alignment.rewards.components import ModelReward, RuleReward
from tests.alignment.ppo import world


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 100, "minibatch_size": 32}, "not a multiple of minibatch_size"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "0 stays 0"),
        ({"kl_target": 6.0, "early_stop_kl": 5.0}, "well above kl_target"),
        ({"steps": 5, "value_warmup_steps": 5}, "none of the 5 steps for the policy"),
        ({"steps": 5, "warmup_steps": 4, "value_warmup_steps": 2}, "does not fit in the 3 steps"),
        ({"score_clip": 1.0, "missing_eos": "replace", "missing_eos_penalty": 2.0}, "would cut"),
        ({"temperature": 0}, "greater than 0"),
        ({"value_coef": 0.5}, "value_coef 0.5 has no effect in layout separate: .* set layout to shared_trunk"),
        ({"vf_coef": 0.5}, "Extra inputs"),
    ],
)
def test_impossible_options(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig(**options)


def _train(tmp_path, tokenizer=None, prompts=world.PROMPTS, reward=world.count_w7, policy=None, **options):
    return train_ppo(
        policy or world.policy(),
        tokenizer or world.tokenizer(),
        prompts,
        reward,
        world.config(**{"steps": 1, **options}),
        out=tmp_path,
    )


def test_pad_and_eos_must_differ(tmp_path) -> None:
    tokenizer = world.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ConfigError, match="add_special_tokens"):
        _train(tmp_path, tokenizer)


def test_prompts_must_fit(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"prompt 1 has 30 tokens .* context of 32"):
        _train(tmp_path, prompts=[[3], [3] * 30])
    with pytest.raises(ConfigError, match="prompt 0 has no tokens"):
        _train(tmp_path, prompts=[[]])
    with pytest.raises(ConfigError, match="no prompts"):
        _train(tmp_path, prompts=[])
    with pytest.raises(ConfigError, match="no ptx_sequences"):
        _train(tmp_path, ptx_coef=1.0)
    for ids, message in (([3, 20], "ptx sequence 0 has the token ids 3 to 20"), ("w3", "ptx sequence 0 is 'w3', not")):
        policy, config = world.policy(), world.config(steps=1, ptx_coef=1.0)
        with pytest.raises(RLHFError, match=message):
            train_ppo(
                policy, world.tokenizer(), [[3]], world.count_w7, config, ptx_sequences=[ids], out=tmp_path / "ptx"
            )


def test_rewards_must_be_numbers_one_for_each(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"step 1: reward 'few' returned 1 values for 16 .* none yet"):
        _train(tmp_path, reward=[RuleReward("few", 1.0, lambda prompts, responses: [0.0])])
    with pytest.raises(TrainingError, match=r"reward 'odd' is nan for 'w"):
        _train(tmp_path, reward=[RuleReward("odd", 1.0, lambda prompts, responses: [math.nan] * len(responses))])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "returned None for 16 responses"),
        (1.0, r"returned 1\.0 for 16 responses"),
        ([None] * 16, r"returned \[None, "),
        (["good"] * 16, r"returned \['good', "),
        (["0.5"] * 16, r"returned \['0.5', "),
        ("a" * 16, "returned 'aaaa"),
        ([10**400] * 16, r"returned \[1000"),
        (torch.ones(16, 2), r"returned tensor"),
    ],
)
def test_what_a_reward_returns_is_said_where_it_is_no_list_of_numbers(tmp_path, given, said) -> None:
    with pytest.raises(TrainingError, match=f"step 1: reward 'odd' {said}.*a number for each"):
        _train(tmp_path, reward=RuleReward("odd", 1.0, lambda prompts, responses: given))


def test_an_error_inside_a_reward_comes_out_as_it_is(tmp_path) -> None:
    def broken(prompts: list[str], responses: list[str]) -> list[float]:
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        _train(tmp_path, reward=broken)


def test_rewards_may_be_arrays(tmp_path) -> None:
    result = _train(str(tmp_path), reward=lambda prompts, responses: torch.full((len(responses), 1), 0.5))
    assert result.metrics["reward"] == result.metrics["reward/lambda"] == 0.5


def test_rewards_must_be_named_and_fit_the_tokenizer(tmp_path) -> None:
    twice = [RuleReward("a", 1.0, world.count_w7), RuleReward("a", 2.0, world.count_w7)]
    with pytest.raises(ConfigError, match="each with a unique name"):
        _train(tmp_path, reward=twice)
    with pytest.raises(CheckpointError, match="has 7 embeddings"):
        _train(tmp_path, reward=scalar_model_from(world.policy(vocab_size=7)))
    with pytest.raises(CheckpointError, match="no per-token head"):
        _train(tmp_path, reward=world.policy())
    with pytest.raises(ConfigError, match="not <class 'int'>"):
        _train(tmp_path, reward=[7])
    with pytest.raises(ConfigError, match="is nan"):
        _train(tmp_path, reward=[ModelReward("m", math.nan, world.reward_model())])


def test_a_reward_model_saved_with_another_tokenizer_is_refused(tmp_path) -> None:
    own, other = world.tokenizer(), tmp_path / "other"
    save_model(scalar_model_from(world.policy()), tmp_path / "same", own)
    _train(tmp_path / "a", reward=load_scalar_model(tmp_path / "same"))
    save_model(scalar_model_from(world.policy()), other, own)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"other"').replace('"w8"', '"w7"').replace('"other"', '"w8"'))
    with pytest.raises(CheckpointError, match=r"reward model 'model' was saved with another tokenizer: .*'w7'"):
        _train(tmp_path / "b", reward=load_scalar_model(other))


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path) -> None:
    calls = 0

    def huge(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        return [1e38 * (-1) ** i if calls == 3 else 0.0 for i in range(len(responses))]

    with pytest.raises(TrainingError, match=r"step 3: .* gradient is (nan|inf).*step-00002\.pt"):
        _train(tmp_path, reward=huge, steps=4, whiten_advantages=False)
    assert torch.load(tmp_path / "checkpoint" / "step-00002.pt", weights_only=True)["step"] == 2


def test_prompts_of_a_dataset() -> None:
    tokenizer = world.tokenizer()
    assert tokenized_prompts(Dataset.from_dict({"prompt": ["w3 w4", "w5"]}), tokenizer) == [[3, 4], [5]]
    chat = Dataset.from_dict({"prompt": [[{"role": "user", "content": "w3 w4"}]]})
    with pytest.raises(ConfigError, match="chat template"):
        tokenized_prompts(chat, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w9' if m.role == 'assistant' else 'w2' }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w9 {% endif %}"
    )
    assert tokenized_prompts(chat, tokenizer) == [[2, 3, 4, 9]]
    with pytest.raises(DataError, match="rename the column to 'prompt'"):
        tokenized_prompts(Dataset.from_dict({"question": ["w3"]}), tokenizer)


@pytest.fixture
def bos_tokenizer():
    """A tokenizer that puts BOS before a text, and EOS after it."""
    tokenizer = world.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "w2"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w2 $A <eos>", special_tokens=[("w2", 2), ("<eos>", world.EOS)]
    )
    return tokenizer


def test_a_prompt_has_one_bos_and_no_eos(bos_tokenizer) -> None:
    assert bos_tokenizer("w3")["input_ids"] == [2, 3, 1] and bos_tokenizer("w2 w3")["input_ids"] == [2, 2, 3, 1]
    prompts = Dataset.from_dict({"prompt": ["w3 w4", "w2 w3 w4", "w3 <eos> w2 w4"]})
    assert tokenized_prompts(prompts, bos_tokenizer) == [[2, 3, 4], [2, 3, 4], [2, 3, 1, 2, 4]]


def test_prompts_rendered_by_a_template_are_those_of_the_messages(bos_tokenizer) -> None:
    bos_tokenizer.chat_template = (
        "w2 {% for m in messages %}{{ 'w8' if m.role == 'assistant' else 'w9' }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}w8 {% endif %}"
    )
    turns = [[{"role": "user", "content": "w3 w4"}]]
    rendered = bos_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    expected = [[2, 9, 3, 4, 8]]
    assert tokenized_prompts(Dataset.from_dict({"prompt": turns}), bos_tokenizer) == expected
    assert tokenized_prompts(Dataset.from_dict({"prompt": rendered}), bos_tokenizer) == expected


def chat_tokenizer(template: str):
    tokenizer = world.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


TURNS = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ 'w9' if m.role == 'assistant' else 'w2' }} {{ m.content }} {% endfor %}"
)


def test_messages_are_encoded_as_the_chat_format_encodes_them(monkeypatch) -> None:
    tokenizer, formats = chat_tokenizer(TURNS + "{% if add_generation_prompt %}w9 w8 {% endif %}"), []
    original = ChatFormat.of
    monkeypatch.setattr(ChatFormat, "of", lambda *arguments: formats.append(original(*arguments)) or formats[-1])
    turns = [[{"role": "user", "content": text}] for text in ("w3", "w3 <turn> w4")]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    opened, typed = tokenized_prompts(Dataset.from_dict({"prompt": turns}), tokenizer)
    assert opened == [2, 3, 9]  # w8 opens a thought, which no finished answer has
    assert tokenizer.convert_tokens_to_ids("<turn>") not in typed and typed[:2] == [2, 3] and typed[-2:] == [4, 9]
    assert len(formats) == 1


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([{"role": "system", "content": "w3"}, {"role": "user", "content": "w3"}], "no system turns"),
        ([{"role": "tool", "content": "w3"}], "role: Input should be 'system', 'user' or 'assistant'"),
        ([{"role": "user", "content": None}], "content: Input should be a valid string"),
        ([3, 4], r"token ids.*prompts\['prompt'\]"),
        (["w3", "w4"], "neither text nor a list of messages"),
        ([], "neither text nor a list of messages"),
        (3, "neither text nor a list of messages"),
        (None, "neither text nor a list of messages"),
    ],
)
def test_prompts_that_are_neither_text_nor_a_conversation(prompt, reason) -> None:
    tokenizer = chat_tokenizer(TURNS + "{% if add_generation_prompt %}w9 {% endif %}")
    with pytest.raises(DataError, match=f"^prompt 0 .*{reason}"):
        tokenized_prompts(Dataset.from_dict({"prompt": [prompt]}), tokenizer)


def test_prompts_of_token_ids() -> None:
    tokenizer, ids = world.tokenizer(), [[3, 4], [5, 6]]
    dataset = Dataset.from_dict({"input_ids": ids})
    for given in (ids, torch.tensor(ids), torch.tensor(ids).numpy(), dataset["input_ids"]):
        assert tokenized_prompts(given, tokenizer) == ids
        assert all(type(token) is int for prompt in tokenized_prompts(given, tokenizer) for token in prompt)
    with pytest.raises(DataError, match=r"pass the column itself, prompts\['input_ids'\]"):
        tokenized_prompts(dataset, tokenizer)
    for wrong in (["w3 w4"], [{"prompt": "w3"}], [["w3", "w4"]], dataset.to_iterable_dataset(), tokenizer(["w3"])):
        with pytest.raises(DataError, match=r"prompt 0 is .*, not a list of token ids"):
            tokenized_prompts(wrong, tokenizer)


def test_prompts_and_policy_must_fit_each_other(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="prompt 1 has the token ids 3 to 20 and the policy has 0 to 19"):
        _train(tmp_path, prompts=[[3], [3, 20]])
    with pytest.raises(CheckpointError, match="the token ids -1 to 3"):
        _train(tmp_path, prompts=[[3, -1]])
    tokenizer = world.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(CheckpointError, match="EOS is token 20 and the policy has 0 to 19"):
        _train(tmp_path, tokenizer)
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification has no output head"):
        _train(tmp_path, policy=world.reward_model())


def test_every_prompt_is_used_once_an_epoch() -> None:
    rows = [row for step in range(6) for row in cycled_rows(8, 4, step, 0, "prompts")]
    epochs = [rows[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert rows != [row for step in range(6) for row in cycled_rows(8, 4, step, 1, "prompts")]
    assert sorted(cycled_rows(3, 6, 0, 0, "prompts")) == [0, 0, 1, 1, 2, 2]


def test_learning_rates() -> None:
    assert [learning_rate_share(step, 10, 3, "constant", 0.1) for step in (0, 1, 2, 3, 9)] == [0.25, 0.5, 0.75, 1, 1]
    assert learning_rate_share(0, 10, 0, "linear", 0.1) == 1
    assert learning_rate_share(5, 10, 0, "linear", 0.1) == pytest.approx(0.55)
    assert learning_rate_share(5, 10, 0, "cosine", 0.1) == pytest.approx(0.55)
    assert learning_rate_share(10, 10, 0, "cosine", 0.1) == pytest.approx(0.1)
