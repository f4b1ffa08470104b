"""The engines of this process, and the options: what is in a key, and what is refused."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from alignment.config.rollout import WHOLE
from alignment.errors import ConfigError
from alignment.models.logprobs import response_logprobs, scoring_batches
from alignment.ppo.config import PPOConfig
from alignment.ppo.train import train_ppo
from alignment.rollout.engine import Sampling, TransformersEngine
from tests.alignment.ppo import world

SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, eos_token_ids=frozenset({1, 4}), batch_size=7)


def sample(policy, prompts=world.PROMPTS, seed=0):
    uniforms = torch.rand(len(prompts), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return TransformersEngine().sample(policy, prompts, SAMPLING, uniforms)


def test_logprobs_of_transformers_are_those_of_a_full_forward() -> None:
    policy = world.policy(initializer_range=0.2).eval()
    assert policy.generation_config is not None
    policy.generation_config.repetition_penalty, policy.generation_config.temperature = 1.5, 0.1  # must not act
    samples = sample(policy)
    sequences = [[*prompt, *s.tokens] for prompt, s in zip(world.PROMPTS, samples, strict=True)]
    assert {s.tokens[-1] for s in samples if s.ended} == {1, 4}
    for prompt, s in zip(world.PROMPTS, samples, strict=True):
        assert not {1, 4} & set(s.tokens[:-1]) and len(s.tokens) == len(s.logprobs), prompt
        assert s.ended == (s.tokens[-1] in (1, 4)) and (s.ended or len(s.tokens) == 8)
    for batch in scoring_batches(sequences, [len(prompt) for prompt in world.PROMPTS], 64):
        with torch.no_grad():
            found = response_logprobs(policy, batch, 0.7)
        at = zip(batch.sequence.tolist(), batch.time.tolist(), strict=True)
        torch.testing.assert_close(found, torch.tensor([samples[i].logprobs[t] for i, t in at]), rtol=0, atol=1e-5)


def test_the_uniforms_decide_and_the_global_state_is_left_alone() -> None:
    policy = world.policy().eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sample(policy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert sample(policy) == first != sample(policy, seed=1)


def test_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="context of 32"):
        sample(world.policy(), [[3] * 25])


@pytest.mark.slow
def test_ppo_with_transformers(tmp_path: Path) -> None:
    config = world.config(rollout={"engine": "transformers"})
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, world.count_w7, config, out=tmp_path)
    for line in world.logged(tmp_path):
        assert line["sampler_kl"] < 1e-9 and line["sampler_ratio_largest"] == pytest.approx(1, abs=1e-4)
        assert line["sampling_mismatch"] < 1e-4


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_native_engine_is_no_part_of_a_key_and_an_address_never_is() -> None:
    assert "rollout" not in PPOConfig().model_dump() and "rollout" not in PPOConfig(rollout={}).model_dump()
    options = {"engine": "vllm", "url": "http://gpu:8000", "requests": 8, "truncation": 3.0}
    config = PPOConfig(rollout=options)
    assert config.model_dump(mode="python")["rollout"] == {"engine": "vllm", "correct": True, "truncation": 3.0}
    whole = config.model_dump(mode="json", context=WHOLE)
    assert PPOConfig.model_validate(whole) == config and whole["rollout"]["url"] == "http://gpu:8000"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"engine": "native", "url": "http://gpu:8000"}, "url has no effect with engine native"),
        ({"engine": "transformers", "requests": 8}, "requests has no effect with engine transformers"),
        ({"truncation": 3.0}, "truncation has no effect with engine native"),
        ({"engine": "vllm", "truncation": 3.0, "correct": False}, "truncation has no effect where correct is false"),
        ({"engine": "sglang"}, "Input should be 'native', 'transformers' or 'vllm'"),
    ],
)
def test_options_without_effect_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        PPOConfig(rollout=options)
