"""The device and the precision of a stage, and that no tensor of a model stays on the CPU."""

import json
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from alignment.config.stages import (
    ComputeConfig,
    EvaluationConfig,
    PretrainConfig,
    RewardConfig,
    SamplingConfig,
    SFTConfig,
)
from alignment.data.responses import sample_responses
from alignment.distributed import devices
from alignment.distributed.devices import autocast, computing, device, frozen_dtype, to_device
from alignment.distributed.threads import side_by_side
from alignment.errors import ConfigError
from alignment.evaluation.bench import Bench
from alignment.journal import Journal
from alignment.methods.dpo import DPOConfig, dpo
from alignment.methods.kto import KTOConfig, kto
from alignment.methods.selection import snapshot_rewards
from alignment.models import scalar
from alignment.models.chat import ChatFormat, load_chat
from alignment.models.ensembles import Ensemble
from alignment.models.generation import generate
from alignment.models.likelihood import add_likelihood
from alignment.models.reward_adapters import load_scalar_adapter, save_scalar_adapter, scalar_adapter_over
from alignment.models.scalar import load_causal_model, load_scalar_model, member_scores, save_model
from alignment.models.tokenizer import load_tokenizer
from alignment.ppo import train
from alignment.records import Document
from alignment.reward_model.ensemble_training import shake_head
from alignment.reward_model.train import group_by_prompt, train_groups, untrained
from alignment.stage import Stage, Step, Tokens
from alignment.training import sft
from alignment.training.pretrain import heldout_loss, packed, starting_point, train_packed
from alignment.training.sft import finetune
from alignment.training.trl import on_one_gpu
from tests.alignment.distributed.pretended_gpu import OnGPU, pretended_gpu
from tests.alignment.ppo import world
from tests.alignment.ppo.world import PROMPTS
from tests.alignment.tiny_world import LINES, SIZES, comparison, demonstration, encoded, make_base, prompt, write

SFT_LIKE = Stage("sft", run=lambda *_, **__: {}, config=RewardConfig, section="sft", cost=lambda *_: Tokens())
TEXT = [Document(text=line) for line in LINES * 4]
pytestmark = pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter:UserWarning")  # it is copied


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A language model, a reward model of it with a likelihood term, and an adapter of one, each in its directory."""
    place = tmp_path_factory.mktemp("devices")
    model, tokenizer = make_base(place)
    reward = untrained(model, RewardConfig(likelihood=True), 1)[0]
    save_model(reward, place / "reward", tokenizer)
    adapter = scalar_adapter_over(model, 2, 4)
    add_likelihood(adapter, model.get_output_embeddings())
    save_scalar_adapter(adapter, place / "adapter")
    answers = [demonstration(f"What is {line[:3]}?", line) for line in LINES]
    write(place / "demonstrations" / "demonstrations.jsonl", answers)
    judged = [comparison(f"Who {n}?", LINES[n % 4], LINES[4]) for n in range(6)]
    write(place / "comparisons" / "train.jsonl", judged)
    return place


# --- which device and precision ---------------------------------------------------------------------------------------


def test_outside_of_a_stage_everything_is_on_the_cpu_in_float32() -> None:
    assert device() == torch.device("cpu") and frozen_dtype() == torch.float32
    assert isinstance(autocast(), nullcontext)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with computing(ComputeConfig()):
        assert device() == torch.device("cpu") and to_device(nn.Linear(1, 1)).weight.device == torch.device("cpu")


def test_a_gpu_is_taken_where_it_is_asked_for_each_process_its_own(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for choice in ("auto", "cuda"):
        with computing(ComputeConfig(device=choice)):
            assert device() == torch.device("cuda", 0) and frozen_dtype() == torch.bfloat16
    monkeypatch.setenv("LOCAL_RANK", "3")
    with computing(ComputeConfig()):
        assert device() == torch.device("cuda", 3)
    with computing(ComputeConfig(device="cpu")):
        assert device() == torch.device("cpu") and frozen_dtype() == torch.float32
    assert device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "cuda"}, "compute.device is 'cuda' and PyTorch .* finds no GPU"),
        ({"precision": "bfloat16"}, "compute.precision is 'bfloat16' and cpu has no bfloat16 arithmetic"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(monkeypatch, options, problem) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    with pytest.raises(ConfigError, match=problem), computing(ComputeConfig(**options)):
        raise AssertionError("it must not begin")
    with computing(ComputeConfig()):
        assert frozen_dtype() == torch.float32


def test_both_threads_of_a_stage_compute_in_its_precision(monkeypatch) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    layer, row = nn.Linear(2, 2), torch.ones(1, 2)

    def product() -> torch.dtype:
        with autocast():
            return layer(row).dtype

    try:
        with computing(ComputeConfig(device="cpu", precision="bfloat16")):
            kinds = side_by_side(product, product, torch.device("cpu"))
        assert kinds == (torch.bfloat16, torch.bfloat16)
        assert side_by_side(product, product, torch.device("cpu")) == (torch.float32, torch.float32)
    finally:
        torch.set_num_threads(before)


class Held:
    """Stands for a model: its memory is free once nobody holds it."""


@pytest.mark.parametrize("ends", [True, False])
def test_a_stage_holds_no_model_after_its_end_nor_after_an_error(monkeypatch, ends) -> None:
    held: list[weakref.ref[Held]] = []

    def train() -> None:
        model = Held()
        model.trainer = [model]  # a circle, as trainers make
        held.append(weakref.ref(model))
        if not ends:
            raise ZeroDivisionError("no step today")

    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))
    error = None
    try:
        with computing(ComputeConfig()):
            train()
    except ZeroDivisionError as raised:
        error = raised  # as a flow keeps it
    assert (error is None) == ends and held[0]() is None


def test_what_a_stage_used_is_described(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    Step(SFT_LIKE, RewardConfig(), compute=ComputeConfig(device="cpu")).perform(tmp_path, Journal(tmp_path), {})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"device": "cpu", "precision": "bfloat16"}


def test_a_trainer_keeps_to_the_gpu_of_its_process(tmp_path) -> None:
    options = TrainingArguments(str(tmp_path), use_cpu=True)
    options._n_gpu = 8  # as on a machine with eight
    assert on_one_gpu(options).n_gpu == 1


# --- the pretended GPU finds what it is for ---------------------------------------------------------------------------


def test_the_pretended_gpu_computes_and_refuses_what_stayed_behind() -> None:
    with pretended_gpu() as gpu:
        layer = nn.Linear(3, 2).to(gpu)
        layer(torch.ones(4, 3, device=gpu)).sum().backward()
        assert isinstance(layer.weight.grad, OnGPU) and layer.weight.grad.tolist() == [[4.0] * 3] * 2
        with pytest.raises(RuntimeError, match="not where the others are"):
            layer(torch.ones(4, 3))
        with pytest.raises(RuntimeError, match="not where the others are"):
            layer.weight[torch.tensor([0, 1])]
        with pytest.raises(RuntimeError, match="generator"):
            nn.init.normal_(layer.weight, generator=torch.Generator())


# --- nothing stays behind, and the numbers are the CPU's --------------------------------------------------------------


def test_models_are_loaded_where_they_work(base) -> None:
    with pretended_gpu() as gpu:
        model = load_causal_model(base / "model")
        models = [model, load_scalar_model(base / "reward"), load_scalar_adapter(base / "adapter", model)]
        models.append(starting_point(PretrainConfig(model=SIZES), base / "model", Journal(base))[0])
        assert {tensor.device for made in models for tensor in (*made.parameters(), *made.buffers())} == {gpu}


def responses(model, **options) -> list[list[int]]:
    uniforms = torch.rand((8, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = generate(model, PROMPTS[:8], max_new_tokens=6, eos_token_ids=[1], **({"uniforms": uniforms} | options))
    return [sample.tokens for sample in samples]


def test_sampling() -> None:
    ours = responses(world.policy().eval())
    with pretended_gpu() as gpu:
        policy = world.policy().eval().to(gpu)
        assert responses(policy) == ours
        responses(policy, uniforms=None, generator=torch.Generator(gpu).manual_seed(0), top_p=0.9)


def ensemble_scores(base: Path) -> Tensor:
    """Of two sequences, by a whole reward model and by an adapter."""
    language_model = load_causal_model(base / "model")
    models = (load_scalar_model(base / "reward"), load_scalar_adapter(base / "adapter", language_model))
    return member_scores(Ensemble(models, "mean", 0.5), [[5, 6, 7, 8], [9, 10, 11]], [2, 1])


def test_scores(base) -> None:
    ours = ensemble_scores(base)
    with pretended_gpu():
        theirs = ensemble_scores(base)
    assert not isinstance(theirs, OnGPU)
    torch.testing.assert_close(theirs, ours)


def pretrained(base: Path, out: Path) -> list[float]:
    """Losses of a few steps, and at their end."""
    model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
    text = packed([(text, ChatFormat.of(tokenizer).document(text)) for text in TEXT], 32, Path("text"))
    config = PretrainConfig(epochs=1, batch_sequences=4, log_every_steps=1, checkpoint_every_steps=1000)
    train_packed(model, text, text, config, out, Journal(out), 0)
    losses = [line["values"]["loss"] for line in Journal(out).read()]
    return [*losses, heldout_loss(model, text)]


def test_pretraining(base, tmp_path) -> None:
    ours = pretrained(base, tmp_path / "cpu")
    with pretended_gpu():
        theirs = pretrained(base, tmp_path / "gpu")
    assert theirs == pytest.approx(ours, rel=1e-4)


def reward_losses(base: Path, out: Path, config: RewardConfig) -> list[float]:
    """Losses of a few steps of a second member, which starts from a head of random numbers."""
    language_model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
    rows = [comparison(f"Who {n}?", LINES[n % 4], LINES[4]) for n in range(6)]
    groups = group_by_prompt(encoded(tokenizer, rows))
    model, head = untrained(language_model, config, 1)
    train_groups(model, head, groups, config, out, Journal(out), 0)
    return [line["values"]["loss"] for line in Journal(out).read()]


@pytest.mark.parametrize("options", [{}, {"likelihood": True, "lm_coef": 0.2}, {"lora_rank": 2}])
def test_reward_model_training(base, tmp_path, options) -> None:
    config = RewardConfig(epochs=1, batch_prompts=3, log_every_steps=1, **options)
    ours = reward_losses(base, tmp_path / "cpu", config)
    with pretended_gpu():
        theirs = reward_losses(base, tmp_path / "gpu", config)
    assert len(ours) == 2 and theirs == pytest.approx(ours, rel=1e-4)


def test_a_random_head_has_the_same_numbers_on_every_device() -> None:
    ours, theirs = world.reward_model(), world.reward_model()
    shake_head(ours, 2)
    with pretended_gpu() as gpu:
        theirs.to(gpu)
        shake_head(theirs, 2)
        assert theirs.score.weight.tolist() == ours.score.weight.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"ptx_coef": 0.5, "ptx_batch_size": 2, "ema_decay": 0.5, "whiten_rewards": True},
        {"layout": "shared_trunk", "gradient_checkpointing": True},
        {"layout": "lora", "entropy_coef": 0.01},
    ],
)
def test_ppo_with_a_policy_that_its_caller_put_on_the_gpu(tmp_path, monkeypatch, options) -> None:
    """All of `train_ppo` but the writing of weights, which are not there to be written."""
    monkeypatch.setattr(train, "publish", lambda *_: None)
    monkeypatch.setattr(train, "save_checkpoint", lambda *_: None)
    config = world.config(steps=1, batch_size=4, minibatch_size=2, max_new_tokens=4, epochs=1, **options)

    def run(out: Path, gpu: torch.device) -> list[dict]:
        policy, reward = world.policy(num_hidden_layers=1).to(gpu), world.reward_model().to(gpu)
        train.train_ppo(policy, world.tokenizer(), PROMPTS, reward, config, ptx_sequences=PROMPTS[3:8], out=out)
        return world.logged(out)

    ours = run(tmp_path / "cpu", torch.device("cpu"))
    with pretended_gpu() as gpu:
        theirs = run(tmp_path / "gpu", gpu)
    for before, now in zip(ours, theirs, strict=True):
        mismatch = {"sampling_mismatch"}  # is nothing but rounding
        assert {k: v for k, v in now.items() if k not in mismatch} == pytest.approx(
            {k: v for k, v in before.items() if k not in mismatch}, rel=1e-3, abs=1e-5
        )


def finetuned(base: Path, out: Path) -> None:
    config = SFTConfig(epochs=2, batch_size=3, max_length_tokens=64, log_every_steps=1)
    finetune(config, out, Journal(out), seed=0, base=base, demonstrations=base / "demonstrations")


def directly_optimized(base: Path, out: Path) -> None:
    config = DPOConfig(epochs=2, batch_size=3, max_length_tokens=64, log_every_steps=1)
    dpo(config, out, Journal(out), seed=0, sft=base, comparisons=base / "comparisons")


def kahneman_tversky(base: Path, out: Path) -> None:
    config = KTOConfig(epochs=1, batch_size=4, max_length_tokens=64, log_every_steps=1)
    kto(config, out, Journal(out), seed=0, sft=base, comparisons=base / "comparisons")


@pytest.mark.parametrize("train", [finetuned, directly_optimized, kahneman_tversky])
def test_trainers_of_trl(base, tmp_path, monkeypatch, train) -> None:
    """All of the stage but the writing of weights."""
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *_: None)
    for module in (scalar, sft):
        monkeypatch.setattr(module, "save_model", lambda *_: None)
    train(base, tmp_path / "cpu")
    with pretended_gpu():
        train(base, tmp_path / "gpu")
    ours, theirs = ([line["values"] for line in Journal(tmp_path / name).read()] for name in ("cpu", "gpu"))
    assert len(ours) == len(theirs) > 2
    for here, there in zip(ours, theirs, strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-6)


def test_responses_and_the_choice_of_a_snapshot(base, tmp_path) -> None:
    write(base / "prompts" / "prompts.jsonl", [prompt("Who?"), prompt("What is it?")])
    config = SamplingConfig(prompts=2, responses_per_prompt=2, max_new_tokens=4)
    selected = [[5, 6, 7], [9, 10]]

    def rewards() -> Tensor:
        chat, ppo = load_chat(base / "model"), world.config(max_new_tokens=4)
        models = (load_causal_model(base / "model"), load_scalar_model(base / "reward"))
        return snapshot_rewards(*models, selected, chat, ppo)

    ours = rewards()
    with pretended_gpu():
        counts = sample_responses(config, tmp_path, Journal(tmp_path), seed=0, model=base, prompts=base / "prompts")
        torch.testing.assert_close(rewards(), ours)
    assert counts["responses"] == 4


def test_evaluation(base) -> None:
    with pretended_gpu():
        model, tokenizer = load_causal_model(base / "model"), load_tokenizer(base / "model")
        bench = Bench(
            config=EvaluationConfig(max_new_tokens=4),
            chat=ChatFormat.of(tokenizer),
            reference=model,
            reward=load_scalar_model(base / "reward"),
            judge=None,
            seed=0,
            prompts=[prompt("Who?"), prompt("What is it?")],
            policy=base,
            corpus=base,
            out=base,
        )
        responses = bench.responses(model)
    assert [response.kl for response in responses] == pytest.approx([0, 0], abs=1e-5)
