"""PPO with a vLLM server, against the stand-in: the native run's figures, the mismatch, and what can go wrong."""

import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.errors import ConfigError, TrainingError
from alignment.models.generation import Sample
from alignment.ppo import train
from alignment.ppo.train import train_ppo
from alignment.rollout import build, server_process
from alignment.rollout.engine import NativeEngine, Sampling, seed_of
from alignment.rollout.vllm import VLLMEngine
from tests.alignment.ppo import world
from tests.alignment.rollout.stand_in import StandIn, sampled, uniforms_of

SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, eos_token_ids=frozenset({1, 4}), batch_size=8)
OPTIONS = {"engine": "vllm", "patience_seconds": 20, "requests": 4}


class NativeFromSeeds(NativeEngine):
    """The native engine with the random numbers that the stand-in draws from the seeds it is sent."""

    def sample(self, policy, prompts, sampling: Sampling, uniforms: Tensor) -> list[Sample]:
        numbers = torch.stack([uniforms_of(seed_of(row), sampling.max_new_tokens) for row in uniforms])
        return super().sample(policy, prompts, sampling, numbers)


@pytest.fixture
def server():
    with StandIn(world.policy()) as stand_in:
        yield stand_in


def engine(server: StandIn, out: Path, **options) -> VLLMEngine:
    config = world.config(rollout={**OPTIONS, "url": server.url, **options}).rollout
    return VLLMEngine(server.url, config, out)


def run(out: Path, server: StandIn, reward=world.count_w7, rollout=None, **options):
    """A few steps of PPO with the server as its engine."""
    config = world.config(rollout={**OPTIONS, "url": server.url, **(rollout or {})}, temperature=0.7, **options)
    return train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, reward, config, out=out)


def run_native(out: Path, monkeypatch, **options):
    """The same steps with the native engine and the same random numbers."""
    monkeypatch.setattr(build, "NativeEngine", NativeFromSeeds)
    config = world.config(temperature=0.7, **options)
    return train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, config, out=out)


def assert_close(ours: list[dict], theirs: list[dict], names=None) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in names or b:
            assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-5), (a["step"], name)


MISMATCH = ("sampler_kl", "sampler_ratio", "sampler_ratio_largest", "truncated_share")


# --- PPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["separate", "lora"])
def test_the_figures_are_the_native_runs(layout: str, server: StandIn, tmp_path: Path, monkeypatch) -> None:
    options = {"layout": layout, **({"lora_rank": 4} if layout == "lora" else {})}
    run(tmp_path / "vllm", server, **options)
    run_native(tmp_path / "native", monkeypatch, **options)
    ours, theirs = world.logged(tmp_path / "vllm"), world.logged(tmp_path / "native")
    assert_close(ours, theirs, [name for name in theirs[0] if name != "sampling_mismatch"])
    for line in ours:
        assert line["sampler_kl"] < 1e-9 and line["truncated_share"] == 0
        assert line["sampler_ratio"] == pytest.approx(1, abs=1e-5)
        assert line["sampler_ratio_largest"] == pytest.approx(1, abs=1e-4)
    assert not any(name in theirs[0] for name in MISMATCH)
    assert [Path(path).name for path in server.loaded] == [f"weights-{step:05d}" for step in range(4)]
    assert not (tmp_path / "vllm" / "rollout").exists()


@pytest.mark.slow
def test_stale_weights_are_seen_and_weighed(server: StandIn, tmp_path: Path) -> None:
    server.stale = True
    run(tmp_path / "weighed", server, rollout={"truncation": 1.05})
    run(tmp_path / "plain", server, rollout={"correct": False})
    weighed, plain = world.logged(tmp_path / "weighed"), world.logged(tmp_path / "plain")
    assert weighed[0]["sampler_kl"] < 1e-9  # before the first update the first weights are right
    assert weighed[1]["sampler_kl"] > 1e-5 and weighed[3]["sampler_kl"] > weighed[1]["sampler_kl"]
    assert weighed[3]["sampler_ratio_largest"] > 1.05 and 0 < weighed[3]["truncated_share"] < 1
    assert weighed[1]["policy_loss"] != pytest.approx(plain[1]["policy_loss"], rel=1e-6)
    assert weighed[1]["sampler_kl"] == pytest.approx(plain[1]["sampler_kl"], rel=1e-3)


class Stop(Exception):
    """What cuts a run off."""


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_policys_weights(server: StandIn, tmp_path: Path) -> None:
    calls = 0

    def count_w7(prompts: list[str], responses: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop
        return world.count_w7(prompts, responses)

    run(tmp_path / "whole", server)
    with pytest.raises(Stop):
        run(tmp_path / "killed", server, reward=count_w7)
    assert (tmp_path / "killed" / "rollout").exists()
    server.model = server.first_model  # the server was started again meanwhile
    run(tmp_path / "killed", server, reward=count_w7)
    assert_close(world.logged(tmp_path / "killed"), world.logged(tmp_path / "whole"))


@pytest.mark.slow
def test_a_server_that_this_run_starts_ends_with_it(tmp_path: Path, monkeypatch) -> None:
    command = f"{sys.executable} -m tests.alignment.rollout.stand_in {{model}} {{port}}"
    monkeypatch.setenv(server_process.COMMAND, command)
    started = []
    start = server_process.ServerProcess.__init__

    def remember(self, *args) -> None:
        start(self, *args)
        started.append(self.process)

    monkeypatch.setattr(server_process.ServerProcess, "__init__", remember)
    config = world.config(rollout={"engine": "vllm", "patience_seconds": 60}, steps=2)
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)
    assert len(world.logged(tmp_path)) == 2 and all(line["sampler_kl"] < 1e-9 for line in world.logged(tmp_path))
    assert len(started) == 1 and started[0].poll() is not None


# --- one rollout ------------------------------------------------------------------------------------------------------


def sample(engine: VLLMEngine, policy, prompts=world.PROMPTS[:6], sampling=SAMPLING, seed=0) -> list[Sample]:
    uniforms = torch.rand(len(prompts), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return engine.sample(policy, prompts, sampling, uniforms)


def expected(policy, prompts=world.PROMPTS[:6], seed=0) -> list[Sample]:
    uniforms = torch.rand(len(prompts), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    request = {"max_tokens": 8, "stop_token_ids": [1, 4], "temperature": 0.7}
    return [sampled(policy, p, seed_of(row), request) for p, row in zip(prompts, uniforms, strict=True)]


def test_new_weights_are_sampled_from_with_several_stop_tokens(server: StandIn, tmp_path: Path) -> None:
    sampler, policy = engine(server, tmp_path), world.policy(seed=5, initializer_range=0.2).eval()
    sampler.update_weights(3, policy)
    samples = sample(sampler, policy)
    assert samples == expected(policy) != expected(world.policy().eval())
    assert {s.tokens[-1] for s in samples if s.ended} and all(len(s.tokens) == 8 for s in samples if not s.ended)
    assert server.most_at_once <= 4 and not server.paused
    for step in (4, 5):
        sampler.update_weights(step, policy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights-00004", "weights-00005"]


def test_a_server_that_fails_or_breaks_off_is_asked_again_with_its_weights(server: StandIn, tmp_path: Path) -> None:
    sampler, policy = engine(server, tmp_path), world.policy(seed=5).eval()
    sampler.update_weights(0, policy)
    server.errors = 2
    assert sample(sampler, policy) == expected(policy)
    server.broken = 1
    assert sample(sampler, policy) == expected(policy)
    assert len(server.loaded) >= 3 and len(set(server.loaded)) == 1


@pytest.mark.parametrize("errors", [0, 10**9], ids=["away", "failing"])
def test_a_server_that_stays_away_is_an_error_in_the_end(errors: int, tmp_path: Path) -> None:
    with StandIn(world.policy()) as server:
        sampler = engine(server, tmp_path, patience_seconds=0.3)
        server.errors = errors
        if errors:
            with pytest.raises(TrainingError, match=r"was not available for .* seconds .*status 500.*out of memory"):
                sample(sampler, world.policy())
    if not errors:
        with pytest.raises(TrainingError, match=r"was not available for .* seconds .*ConnectError"):
            sample(sampler, world.policy())


def test_a_slow_server_is_waited_for_so_long(server: StandIn, tmp_path: Path) -> None:
    server.seconds = 0.2
    policy = world.policy().eval()
    assert sample(engine(server, tmp_path), policy) == expected(policy)
    server.seconds, start = 3.0, time.monotonic()
    with pytest.raises(TrainingError, match=r"did not answer /v1/completions within 0.3 seconds: raise ppo.rollout"):
        sample(engine(server, tmp_path, timeout_seconds=0.3), policy)
    assert time.monotonic() - start < 2.5


def choice(**changes):
    """An answer with these fields of its choice replaced."""
    return lambda answer: {**answer, "choices": [{**answer["choices"][0], **changes}]}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (lambda answer: b"<html>a proxy</html>", "is no answer of vLLM's"),
        (lambda answer: {"choices": []}, "is no answer of vLLM's"),
        (choice(token_ids=None), "is no answer of vLLM's"),
        (choice(token_ids=[3] * 7), "7 tokens with 8 log-probabilities"),
        (choice(token_ids=[3] * 7 + [20]), "token ids outside the policy's 0 to 19"),
        (choice(logprobs={"token_logprobs": [float("nan")] * 8}), "log-probabilities"),
        (choice(logprobs={"token_logprobs": [0.5] * 8}), "log-probabilities above 0"),
        (choice(token_ids=[3, 1] + [3] * 6), "tokens after a stop token"),
        (choice(token_ids=[3] * 3, logprobs={"token_logprobs": [-1.0] * 3}, finish_reason="abort"), "reason 'abort'"),
        (choice(token_ids=[3] * 9, logprobs={"token_logprobs": [-1.0] * 9}), "9 tokens where 8 were wanted"),
    ],
)
def test_nonsense_is_an_error_at_once(changed, problem: str, server: StandIn, tmp_path: Path) -> None:
    full = choice(token_ids=[3] * 8, logprobs={"token_logprobs": [-1.0] * 8}, finish_reason="length")
    server.changed = lambda answer: changed(full(answer))
    with pytest.raises(TrainingError, match=problem):
        sample(engine(server, tmp_path), world.policy())


def test_prompts_at_the_limit_of_the_server(server: StandIn, tmp_path: Path) -> None:
    policy = world.policy().eval()
    assert sample(engine(server, tmp_path), policy, [[3] * 24]) == expected(policy, [[3] * 24])
    server.max_model_len = 31
    with pytest.raises(ConfigError, match=r"32 tokens, and the server at .* takes 31: start it with --max-model"):
        sample(engine(server, tmp_path), policy, [[3] * 24])


def test_a_server_without_the_calls_of_development_is_named(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(server, "answer", lambda path, body: (404, {"detail": "Not Found"}))
    with pytest.raises(TrainingError, match=r"refused POST /pause with status 404.*VLLM_SERVER_DEV_MODE=1"):
        engine(server, tmp_path).update_weights(0, world.policy())


# --- the server's process ---------------------------------------------------------------------------------------------


def start(tmp_path: Path, **options):
    config = world.config(rollout={"engine": "vllm", **options}, steps=1)
    return train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)


def test_a_server_must_be_named(tmp_path: Path, monkeypatch) -> None:
    for name in (build.URL, server_process.COMMAND):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"no server is named: set ppo.rollout.url"):
        start(tmp_path / "a")
    monkeypatch.setenv(server_process.COMMAND, "vllm serve {model}")
    with pytest.raises(ConfigError, match=r"lacks \{port\}"):
        start(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"address of the vLLM server is 'gpu:8000'"):
        start(tmp_path / "c", url="gpu:8000")


def test_a_command_that_ends_is_reported_with_its_last_words(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(server_process.COMMAND, "sh -c 'echo no GPU here {model} {port}; exit 3'")
    with pytest.raises(TrainingError, match=r"(?s)ended with status 3.*no GPU here"):
        start(tmp_path)
    assert "no GPU here" in (tmp_path / "rollout" / "vllm.log").read_text()


def test_the_address_may_be_in_the_environment(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(build.URL, server.url)
    start(tmp_path, patience_seconds=5)
    assert server.calls.count("/v1/completions") == train.PPOConfig(batch_size=16, minibatch_size=8).batch_size
