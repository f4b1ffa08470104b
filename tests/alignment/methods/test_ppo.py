"""The stage ppo in each layout, with a full reward model, an adapter of the policy's base, and both."""

import pytest
import torch
from torch import nn

from alignment.errors import DataError
from alignment.journal import Journal
from alignment.methods.ppo import drop_low_reward_conversations, ppo, without_low_rewards
from alignment.models.chat import ChatFormat
from alignment.models.lora import adapter_weights, has_adapter
from alignment.models.reward_adapters import save_reward, save_scalar_adapter, scalar_adapter_over
from alignment.models.scalar import load_causal_model, save_model, scalar_model_from
from alignment.ppo.config import PPOConfig
from alignment.ppo.train import train_ppo
from alignment.records import Document, Message
from alignment.rules.options import AlignOptions
from tests.alignment import tiny_world as world

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["separate", "shared_trunk", "lora"])
@pytest.mark.parametrize("form", ["whole", "adapter", "both"])
def test_the_stage_in_each_layout(tmp_path, monkeypatch, layout, form) -> None:
    sft, reward, prompts = tmp_path / "sft", tmp_path / "reward", tmp_path / "prompts"
    for directory in (reward / "model", prompts):
        directory.mkdir(parents=True)
    model, _ = world.make_base(sft)
    if form == "whole":
        save_model(scalar_model_from(model), reward / "model")
    else:
        scorer = scalar_adapter_over(model, 4, 8)
        for weight in adapter_weights(scorer).values():
            nn.init.normal_(weight, std=0.3)
        if form == "both":
            save_reward(scorer, reward / "model")
        else:
            save_scalar_adapter(scorer, reward / "model", str(sft / "model"))
    world.write(prompts / "prompts.jsonl", [world.prompt(f"What does {name} play?") for name in ("Ada", "Bo", "Cy")])
    config = PPOConfig(layout=layout, steps=1, batch_size=4, minibatch_size=2, max_new_tokens=8)
    out = tmp_path / "out"
    scored_by = []
    monkeypatch.setattr(
        "alignment.ppo.train.train_ppo",
        lambda *given, **options: scored_by.append(given[3][0].model) or train_ppo(*given, **options),
    )
    data = {"sft": sft, "reward": reward, "prompts": prompts, "corpus": tmp_path}
    figures = ppo(config, out, Journal(out), seed=0, align=AlignOptions(), **data)
    assert figures["steps"] == 1 and figures["prompts"] == 3
    assert has_adapter(scored_by[0]) == (form == "adapter" or (form == "both" and layout == "lora"))
    policy, start = load_causal_model(out / "model"), load_causal_model(sft / "model")
    assert policy.state_dict().keys() == start.state_dict().keys()
    assert any(not torch.equal(policy.state_dict()[name], weight) for name, weight in start.state_dict().items())


def test_the_stage_leaves_out_what_scores_low_from_the_pretraining_text(tmp_path) -> None:
    sft = tmp_path / "sft"
    model, _ = world.make_base(sft)
    save_model(scalar_model_from(model), tmp_path / "model")  # scores everything 0
    world.write(tmp_path / "prompts.jsonl", [world.prompt(f"What does {name} play?") for name in ("Ada", "Bo", "Cy")])
    talk = Document(messages=[Message(role="user", content="Who?"), Message(role="assistant", content="Ada.")])
    world.write(tmp_path / "train.jsonl", [talk, Document(text="Ada plays the violin.")])
    config = PPOConfig(steps=1, batch_size=4, minibatch_size=2, max_new_tokens=8, ptx_coef=0.1, ptx_batch_size=1)
    read = {}
    for minimum in (None, 0.0, 0.1):
        out = tmp_path / f"out-{minimum}"
        figures = ppo(
            config,
            out,
            Journal(out),
            seed=0,
            sft=sft,
            reward=tmp_path,
            prompts=tmp_path,
            corpus=tmp_path,
            align=AlignOptions(ptx_min_reward=minimum),
        )
        read[minimum] = figures["ptx_documents"]
    assert read == {None: 2, 0.0: 2, 0.1: 1}


def test_conversations_with_a_poor_answer_are_not_repeated(tmp_path, monkeypatch) -> None:
    model, tokenizer = world.make_base(tmp_path)
    asked = []

    def scores(reward, sequences, prompt_lengths):
        pairs = list(zip(sequences, prompt_lengths, strict=True))
        asked.append([tokenizer.decode(row[:length]).count("cat") for row, length in pairs])
        return torch.tensor([-1.0 if "cat" in tokenizer.decode(row[length:]) else 0.5 for row, length in pairs])

    def talk(*words: str) -> Document:
        roles = ("user", "assistant") * 2
        return Document(messages=[Message(role=role, content=word) for role, word in zip(roles, words, strict=False)])

    monkeypatch.setattr("alignment.models.scalar.reward_scores", scores)
    good, poor, late = talk("Who?", "Ada."), talk("Who?", "A cat."), talk("What cat?", "Bo.", "Who?", "A cat.")
    plain, long = Document(text="Ada plays a cat."), talk("Who?", "A cat. " * 40)
    chat = ChatFormat.of(tokenizer)
    good, poor, late, plain, long = ((each, chat.document(each)) for each in (good, poor, late, plain, long))
    documents = [good, poor, plain, late, long]
    assert drop_low_reward_conversations(documents, chat, 64, model, 0.0) == [good, plain, long]
    assert asked == [[0, 0, 1, 1]]  # each answer after all that was said before it
    assert drop_low_reward_conversations(documents, chat, 64, model, -1.0) == documents
    assert drop_low_reward_conversations([plain], chat, 64, model, 9.0) == [plain]
    monkeypatch.setattr("alignment.methods.ppo.SCORED_DOCUMENTS", 1)
    assert list(without_low_rewards(iter([poor, good, late]), chat, 64, model, 0.0)) == [good]
    with pytest.raises(DataError, match="lower `align"):
        list(without_low_rewards(iter([good, poor]), chat, 64, model, 9.0))
