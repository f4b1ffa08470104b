"""DPO, RLOO and best-of-n on a model of a few thousand weights: each learns what its signal rewards."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trl import RLOOConfig as RLOOTrainerOptions

from alignment.journal import Journal
from alignment.methods.best_of_n import BestOfNConfig, best_indices, best_of_n
from alignment.methods.dpo import DPOConfig, dpo, own_tokens, pairs
from alignment.methods.kto import KTOConfig, kto
from alignment.methods.rloo import RLOOConfig, conversations, rloo, trainer_on_own_tokens
from alignment.models.chat import ChatFormat
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.models.scalar import load_causal_model, save_model, scalar_head, scalar_model_from
from alignment.models.tokenizer import ASSISTANT, load_tokenizer
from alignment.records import Demonstration, read_records
from alignment.rewards.components import RuleReward
from alignment.rules.options import AlignOptions
from tests.alignment.tiny_world import (
    comparison,
    encoded,
    make_base,
    prompt,
    prompt_tokens,
    response_tokens,
    user,
    write,
)

GOOD, BAD = "Ada plays the violin.", "Nobody knows why the river is so cold."


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """SFT, a reward model without a preference, prompts, and judges who like the violin."""
    place = tmp_path_factory.mktemp("methods")
    model, tokenizer = make_base(place)
    reward = scalar_model_from(model)
    nn.init.zeros_(scalar_head(reward).weight)
    save_model(reward, place / "reward" / "model", tokenizer)
    write(place / "prompts.jsonl", [prompt(f"Who {n}?") for n in range(8)])
    write(place / "train.jsonl", [comparison(f"Who {n}?", GOOD, BAD) for n in range(16)])
    return place


def letters(prompts: list[str], responses: list[str]) -> list[float]:
    """How many letters of the plain alphabet a response has."""
    return [float(sum(one.isascii() and one.isalpha() for one in response)) for response in responses]


def brevity(prompts: list[str], responses: list[str]) -> list[float]:
    """The shorter the better."""
    return [-float(len(response.strip())) for response in responses]


def logprob(directory, text: str) -> float:
    """log π(text) after a question, under the model in a directory."""
    model, tokenizer = load_causal_model(directory / "model"), load_tokenizer(directory / "model")
    head = prompt_tokens(tokenizer, user("Who 3?"))
    (batch,) = scoring_batches([head + response_tokens(tokenizer, text)], [len(head)], 64, torch.device("cpu"))
    with torch.no_grad():
        return float(response_logprobs(model, batch).sum())


# --- DPO -------------------------------------------------------------------------------------------------------------


def run_dpo(place, out, **options):
    config = DPOConfig(
        **{
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "max_length_tokens": 64,
            "log_every_steps": 1,
            **options,
        }
    )
    return dpo(config, out, Journal(out), seed=0, sft=place, comparisons=place)


def test_dpo_moves_towards_what_was_chosen(place, tmp_path) -> None:
    figures = run_dpo(place, tmp_path)
    before, after = (logprob(at, GOOD) - logprob(at, BAD) for at in (place, tmp_path))
    assert after > before + 1
    assert figures["accuracy"] == 1 and figures["margin"] > 0
    assert (figures["comparisons"], figures["too_long"]) == (16, 0)
    log = Journal(tmp_path).read()
    assert log[0]["values"]["loss"] == pytest.approx(0.693, abs=1e-3)  # log 2: policy and reference are the same
    assert [line["step"] for line in log] == list(range(1, 9))


def test_dpo_reads_a_comparison_as_every_other_stage_does(place) -> None:
    tokenizer = load_tokenizer(place / "model")
    rows = [comparison(f"Say {ASSISTANT} aloud", GOOD, BAD)]
    dataset = pairs(encoded(tokenizer, rows))
    head = prompt_tokens(tokenizer, user(f"Say {ASSISTANT} aloud"))
    batch = own_tokens(0)(list(dataset))
    assert len(batch["input_ids"]) == 2
    tokens, masks = batch["input_ids"].tolist(), batch["completion_mask"].tolist()
    for row, mask, text in zip(tokens, masks, (GOOD, BAD), strict=True):
        tail = response_tokens(tokenizer, text)
        assert row[: len(head) + len(tail)] == head + tail and sum(mask) == len(tail)


# --- memory ---------------------------------------------------------------------------------------------------------

UNEVEN = [comparison(f"Who {n}?", GOOD * (1 + n % 3), BAD) for n in range(7)]


@pytest.fixture(scope="module")
def uneven(place, tmp_path_factory):
    """Seven comparisons of uneven length."""
    directory = tmp_path_factory.mktemp("uneven")
    return write(directory / "train.jsonl", UNEVEN)


def aligned(method, place, rows, out, **options):
    """The weights after two steps of DPO or KTO, the second with a smaller batch, and the last figures."""
    function, config = {"dpo": (dpo, DPOConfig), "kto": (kto, KTOConfig)}[method]
    defaults = {"epochs": 1, "batch_size": 4 if method == "dpo" else 8, "learning_rate": 1e-2, "max_length_tokens": 64}
    values = config(**{**defaults, "log_every_steps": 1, **options})
    figures = function(values, out, Journal(out), seed=0, sft=place, comparisons=rows)
    return load_file(out / "model" / "model.safetensors"), figures


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_micro_batches_and_recomputation_leave_the_same_weights(place, uneven, tmp_path, method) -> None:
    expected, figures = aligned(method, place, uneven, tmp_path / "whole")
    options = {"micro_batch_tokens": 100 if method == "kto" else 200, "gradient_checkpointing": True}
    weights, other = aligned(method, place, uneven, tmp_path / "parts", **options)
    assert all(torch.allclose(weights[name], expected[name], atol=5e-6) for name in expected)
    assert not all(torch.equal(weights[name], expected[name]) for name in expected)
    assert other["loss"] == pytest.approx(figures["loss"], abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_adapter_s_reference_is_its_base_and_its_checkpoint_is_plain(place, tmp_path, method) -> None:
    before = load_file(place / "model" / "model.safetensors")
    weights, figures = aligned(method, place, place, tmp_path, epochs=4, lora_rank=2, lora_targets=("q_proj",))
    assert weights.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], weights[name])} == {
        "model.layers.0.self_attn.q_proj.weight"
    }
    assert figures["margin"] > 0
    first = Journal(tmp_path).read()[0]["values"]
    assert first["loss"] == pytest.approx({"dpo": 0.6931, "kto": 0.5}[method], abs=1e-3)


@pytest.mark.parametrize("options", [{"micro_batch_tokens": 100}, {"gradient_checkpointing": True}, {"lora_rank": 2}])
def test_rloo_with_less_memory(place, tmp_path, rule, options) -> None:
    rule("letters", letters)
    common = {"steps": 2, "batch_size": 16, "kl_coef": 0.05}
    figures = run_rloo(place, tmp_path / "whole", **common)
    other = run_rloo(place, tmp_path / "less", **common, **options)
    whole, less = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "less"))
    assert whole.keys() == less.keys()
    first, second = (Journal(tmp_path / name).read()[0]["values"] for name in ("whole", "less"))
    assert second["reward"] == pytest.approx(first["reward"])  # the same responses are drawn
    if "lora_rank" in options:
        start = load_file(place / "model" / "model.safetensors")
        changed = {name for name in less if not torch.equal(less[name], start[name])}
        assert changed and all("_proj" in name for name in changed)
    else:
        assert all(torch.allclose(whole[name], less[name], atol=2e-5) for name in whole)
        assert other["reward"] == pytest.approx(figures["reward"], abs=1e-5)


# --- RLOO ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rule(monkeypatch):
    """Sets a rule of the test's own beside the reward model."""

    def use(name, function):
        monkeypatch.setattr("alignment.rewards.build.rule_rewards", lambda _: [RuleReward(name, 1.0, function)])

    return use


def run_rloo(place, out, **options):
    config = RLOOConfig(
        **{
            "steps": 16,
            "batch_size": 64,
            "responses_per_prompt": 8,
            "max_new_tokens": 8,
            "learning_rate": 1e-2,
            "kl_coef": 0.0,
            "missing_eos_penalty": 0.0,
            **options,
        }
    )
    data = {"sft": place, "reward": place / "reward", "prompts": place}
    return rloo(config, out, Journal(out), seed=0, align=AlignOptions(), **data)


def test_rloo_follows_the_reward(place, tmp_path, rule) -> None:
    rule("letters", letters)
    figures = run_rloo(place, tmp_path)
    values = [line["values"] for line in Journal(tmp_path).read() if "reward" in line["values"]]
    assert values[-1]["reward"] > 1.5 * values[0]["reward"] > 0 and figures["reward"] == values[-1]["reward"]
    assert all(line["reward"] == pytest.approx(line["reward/letters"], abs=1e-3) for line in values)
    assert all(line["reward/model"] == pytest.approx(0, abs=1e-6) for line in values)
    assert figures["prompts"] == 8 and (tmp_path / "figures" / "rloo.png").exists()


def test_rloo_takes_its_penalty_where_no_end_came(place, tmp_path, rule) -> None:
    rule("letters", letters)
    run_rloo(place, tmp_path, steps=1, missing_eos_penalty=3.0, kl_coef=0.1)
    (line,) = [line["values"] for line in Journal(tmp_path).read() if "reward" in line["values"]]
    # policy and reference are the same at the first step, so no KL is in the reward yet
    assert line["reward"] == pytest.approx(line["reward/letters"] - 3 * line["missing_eos"], abs=1e-3)
    assert line["kl_per_token"] == pytest.approx(0, abs=1e-4)


def test_rloo_samples_for_the_tokens_of_every_other_stage(place, tmp_path) -> None:
    tokenizer = load_tokenizer(place / "model")
    rows = [(row, prompt_tokens(tokenizer, row.messages)) for row in (prompt("Who?"), prompt(f"{ASSISTANT} Who?"))]
    dataset = conversations(rows)
    trainer = trainer_on_own_tokens(
        ChatFormat.of(tokenizer),
        model=load_causal_model(place / "model"),
        reward_funcs=lambda completion_ids, **_: [0.0 for _ in completion_ids],
        args=RLOOTrainerOptions(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    assert trainer._tokenize_prompts(dataset["prompt"])[0] == dataset["prompt_tokens"] == [ids for _, ids in rows]


# --- best of n -------------------------------------------------------------------------------------------------------


def test_the_best_usable_response_of_each_prompt() -> None:
    scores, usable = [1, 5, 3, 9, 2, 0, 4, 4, 1], [True, False, True, True, True, True, False, False, False]
    assert best_indices(scores, usable, 3) == [2, 3]


def test_best_of_n_is_fine_tuned_on_what_it_chose(place, tmp_path, rule) -> None:
    rule("brevity", brevity)
    config = BestOfNConfig.model_validate(
        {
            "samples": 96,
            "max_new_tokens": 16,
            "finetune": {
                "epochs": 2,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "max_length_tokens": 64,
                "log_every_steps": 1,
            },
        }
    )
    arguments = {"seed": 0, "sft": place, "reward": place / "reward", "prompts": place, "align": AlignOptions()}
    figures = best_of_n(config, tmp_path, Journal(tmp_path), **arguments)
    rows, _ = read_records(tmp_path / "demonstrations.jsonl", Demonstration)
    assert figures["prompts"] == 8 and figures["prompts_without_answer"] == 8 - len(rows) < 8
    mean = sum(brevity([], [row.completion for row in rows])) / len(rows)
    assert figures["reward_of_best"] == pytest.approx(mean) and mean > figures["reward_of_all"]
    weights, before = (load_file(at / "model" / "model.safetensors") for at in (tmp_path, place))
    assert any(not torch.equal(weights[name], before[name]) for name in before)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert best_of_n(config, tmp_path, Journal(tmp_path), **arguments) == figures  # what was chosen is kept
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)
