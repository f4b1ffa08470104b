"""The table in docs/models.md: each architecture, as a tiny random model, does what its row says."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from alignment.config.stages import PretrainConfig, RewardConfig, SFTConfig
from alignment.errors import RLHFError
from alignment.journal import Journal
from alignment.models.architecture import cache_argument, check_causal
from alignment.models.chat import ChatFormat
from alignment.models.generation import generate
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.scalar import (
    load_causal_model,
    load_scalar_model,
    reward_scores,
    save_model,
    scalar_head,
    scalar_model_from,
)
from alignment.ppo.train import train_ppo
from alignment.reward_model.train import PromptGroup, train_groups, untrained
from alignment.training import sft
from alignment.training.pretrain import starting_point
from tests.alignment.models.zoo import SIZES, tiny
from tests.alignment.ppo import world
from tests.alignment.tiny_world import demonstration, write

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
TABLE = {
    name: cells.split(" | ") for name, cells in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", PAGE, re.MULTILINE)
}
REASONS = dict(re.findall(r'^(\d)\. "(.+)"$', PAGE, re.MULTILINE))
USUAL = ("llama", "gemma3", "qwen3_next", "gpt2", "opt", "bloom", "mamba", "bert", "t5")  # the others take minutes
EVERY = [pytest.param(name, marks=[] if name in USUAL else pytest.mark.long) for name in SIZES]
PROMPTS = [[2, 5, 6, 7, 8, 9, 10, 11], [2, 12, 13], [2, 14, 15, 16, 17]]
LENGTHS = [len(prompt) for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def without_figures(monkeypatch) -> None:
    monkeypatch.setattr(Journal, "figure", lambda *_: None)


def lively(name: str) -> PreTrainedModel:
    """A tiny model whose responses differ."""
    model = tiny(name)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    return model


def written(model: PreTrainedModel, path: Path) -> Path:
    save_model(model, path, world.tokenizer())
    return path


def test_every_architecture_has_a_row() -> None:
    assert TABLE.keys() == SIZES.keys() and all(len(cells) == 3 for cells in TABLE.values())
    assert set(re.findall(r"\d", "".join(re.findall(r"no \((.+?)\)", PAGE)))) == REASONS.keys()


@pytest.mark.parametrize("name", EVERY)
def test_an_architecture_does_what_its_row_says(name, tmp_path) -> None:
    sampling, training, adapters = TABLE[name]
    path = tmp_path / "model"
    if name in ("bart", "t5"):
        tiny(name, auto=AutoModelForSeq2SeqLM).save_pretrained(path)
    else:
        written(lively(name), path)
    attempt(sampling, lambda: samples_and_learns(path, tmp_path / "sft"))
    attempt(training, lambda: scores_and_trains(path, tmp_path / "reward"))
    for layout in ("separate", "shared_trunk"):
        attempt(training, lambda layout=layout: optimizes(path, layout, tmp_path / layout))
    attempt(adapters, lambda: optimizes(path, "lora", tmp_path / "lora"))
    attempt(training if sampling == "yes" else sampling, lambda: imports(path, tmp_path))


def attempt(cell: str, work) -> None:
    """The work succeeds, or is refused in words that the cell refers to."""
    if cell.startswith("yes"):
        work()
        return
    words = (re.escape(REASONS[number]).replace("…", ".*") for number in re.findall(r"\d", cell))
    with pytest.raises(RLHFError, match="|".join(words)):
        work()


def imports(path: Path, out: Path) -> None:
    starting_point(PretrainConfig(checkpoint=str(path), epochs=0), None, Journal(out))


def samples_and_learns(path: Path, out: Path) -> None:
    model = load_causal_model(path)
    cache_argument(model)
    check_causal(model)
    greedy = [greedy_response(model, prompt) for prompt in PROMPTS]
    ends = {1, greedy[0][min(2, len(greedy[0]) - 1)], greedy[2][-1]}
    cut = [response[: next((i + 1 for i, t in enumerate(response) if t in ends), None)] for response in greedy]
    samples = generate(model, PROMPTS, max_new_tokens=8, eos_token_ids=ends, temperature=0.0)
    assert [sample.tokens for sample in samples] == cut
    expected = torch.tensor([p for pair in zip(PROMPTS, cut, strict=True) for p in logprobs(model, *pair)])
    sampled = torch.tensor([p for sample in samples for p in sample.logprobs])
    assert torch.allclose(sampled, expected, atol=1e-5)
    sequences = [prompt + response for prompt, response in zip(PROMPTS, cut, strict=True)]
    (batch,) = scoring_batches(sequences, LENGTHS, 10_000)
    order = sorted(range(len(expected)), key=lambda i: (int(batch.sequence[i]), int(batch.time[i])))
    with torch.no_grad():
        assert torch.allclose(response_logprobs(model, batch)[order], expected, atol=1e-5)
    fine_tunes(path, out)


def greedy_response(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """The response by transformers, to one prompt at a time."""
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@torch.no_grad()
def logprobs(model: PreTrainedModel, prompt: list[int], response: list[int]) -> list[float]:
    """The response's log-probabilities, from a forward of this sequence alone."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0].tolist()


def fine_tunes(path: Path, out: Path) -> None:
    """The first loss is the mean over the response tokens of a forward of transformers."""
    model, tokenizer = load_causal_model(path), world.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ 'w2 ' if m.role == 'user' }}{{ m.content }} {% endfor %}"
    save_model(model, out / "base" / "model")
    rows = [demonstration(f"w{i} w4", "w5 w6") for i in range(3, 7)]
    config = SFTConfig(epochs=2, batch_size=4, max_length_tokens=16, log_every_steps=1)
    data, journal = write(out / "in" / "demonstrations.jsonl", rows), Journal(out / "out")
    with pytest.MonkeyPatch.context() as patch:  # transformers reads no tokenizer of words beside a Qwen 2
        patch.setattr(sft, "load_chat", lambda _: ChatFormat.of(tokenizer))
        sft.finetune(config, out / "out", journal, seed=0, base=out / "base", demonstrations=data)
    expected = [p for i in range(3, 7) for p in logprobs(model, [2, i, 4], [5, 6, 1])]
    balancing = 0.03 if hasattr(model.config, "router_aux_loss_coef") else 0  # of experts, which TRL adds to the loss
    loss = journal.read()[0]["values"]["loss"]
    assert loss == pytest.approx(-sum(expected) / len(expected), abs=1e-4 + balancing)
    assert changed(model, load_causal_model(out / "out" / "model"))


def scores_and_trains(path: Path, out: Path) -> None:
    """Scores are those of transformers' own sequence classification model."""
    model = load_causal_model(path)
    reward = scalar_model_from(model)
    nn.init.normal_(scalar_head(reward).weight, generator=torch.Generator().manual_seed(0))
    scores = reward_scores(reward, PROMPTS, [1] * len(PROMPTS))
    with torch.no_grad():
        own = [float(reward(input_ids=torch.tensor([prompt])).logits) for prompt in PROMPTS]
        save_model(reward, out / "model")
    assert scores.tolist() == pytest.approx(own, abs=1e-4)
    assert reward_scores(load_scalar_model(out / "model"), PROMPTS, LENGTHS).tolist() == scores.tolist()
    config = RewardConfig(epochs=1, batch_prompts=1, max_length_tokens=16)
    trained, head = untrained(model, config, 0)
    train_groups(trained, head, [PromptGroup(PROMPTS[:2], [(0, 1)], 1, [1.0])], config, out, Journal(out), 0)
    better, worse = reward_scores(trained, PROMPTS[:2], [1, 1])
    assert better > worse


def optimizes(path: Path, layout: str, out: Path) -> None:
    policy = load_causal_model(path)
    config = world.config(steps=1, layout=layout, batch_size=4, minibatch_size=4, max_new_tokens=4)
    result = train_ppo(policy, world.tokenizer(), world.PROMPTS, world.count_w7, config, out=out)
    assert result.metrics["sampling_mismatch"] < 1e-5 and abs(result.metrics["kl"]) < 1e-4
    assert changed(policy, load_causal_model(result.model_dir))


def changed(before: PreTrainedModel, after: PreTrainedModel) -> bool:
    """Whether the model's weights are the same ones, with other values."""
    weights = dict(after.named_parameters())
    assert weights.keys() == dict(before.named_parameters()).keys()
    return any(not torch.equal(weight, weights[name]) for name, weight in before.named_parameters())
