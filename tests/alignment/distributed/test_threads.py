"""Two jobs side by side: what they return, how they fail, and that who is first changes nothing."""

import threading
from collections.abc import Iterator

import pytest
import torch

from alignment.distributed.threads import side_by_side
from alignment.ppo.learner import Learner
from alignment.ppo.models import lay_out
from alignment.ppo.rollout import rollout_of, sample_episodes, score_episodes
from alignment.ppo.update import accumulate_gradients
from alignment.rewards.components import reward_components
from alignment.training.loop import backward
from tests.alignment.ppo import world

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    """Four threads for torch, and what there was before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def seen() -> tuple[int, int]:
    return threading.get_ident(), torch.get_num_threads()


def test_each_job_has_half_of_the_threads(threads) -> None:
    here, beside = side_by_side(seen, seen, CPU)
    assert here == (threading.get_ident(), 2)
    assert beside[0] != here[0] and beside[1] == 2
    assert torch.get_num_threads() == 4
    assert {place for place, _ in side_by_side(seen, seen, torch.device("meta"))} == {threading.get_ident()}
    torch.set_num_threads(1)
    assert {place for place, _ in side_by_side(seen, seen, CPU)} == {threading.get_ident()}


def test_an_error_waits_for_the_other_job(threads) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        ended.wait(0.2)
        ended.set()

    def broken() -> None:
        begun.wait(5)
        raise ValueError("of the first")

    with pytest.raises(ValueError, match="of the first"):
        side_by_side(broken, slow, CPU)
    assert ended.is_set() and torch.get_num_threads() == 4
    with pytest.raises(ValueError, match="of the first"):
        side_by_side(lambda: None, broken, CPU)


@pytest.mark.parametrize("layout", ["separate", "lora"])
def test_one_thread_or_two_give_the_same_gradients_to_the_bit(layout, threads) -> None:
    torch.set_num_threads(1)
    config = world.config(layout=layout)
    components = reward_components(world.reward_model(), world.tokenizer())
    models = lay_out(config, world.policy(), None, None, components)
    uniforms = torch.rand(16, config.max_new_tokens, generator=torch.Generator().manual_seed(0))
    episodes = sample_episodes(models.policy, world.PROMPTS[:16], config, {world.EOS}, uniforms)
    told = (models.reference, models.policy, models.value_model, world.tokenizer(), config)
    learner = Learner.of(models.policy, models.value_model, config)
    weights = [*learner.policy_weights.values(), *learner.value_weights.values()]

    def scored_and_learnt(count: int) -> list[torch.Tensor | None]:
        torch.set_num_threads(count)
        scored = score_episodes(episodes, components, *told)
        torch.set_num_threads(1)
        rollout = rollout_of(scored, components, config, 0.1)
        for weight in weights:
            weight.grad = None
        torch.set_num_threads(count)
        accumulate_gradients(learner, rollout, range(16), config)
        return [scored.values, scored.reference_logprobs, *(weight.grad for weight in weights)]

    one, two = scored_and_learnt(1), scored_and_learnt(2)
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if a is not None and b is not None]
    assert len(pairs) > 10 and sum(bool(a.any()) for a, _ in pairs) > 10
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_gradients_of_two_losses_are_those_of_their_sum(threads) -> None:
    model, tokens = world.policy().eval(), torch.arange(2, 66).view(8, 8) % 12
    weights = [*model.parameters()]
    apart = torch.nn.Parameter(torch.ones(1))  # no loss depends on it

    def loss(rows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=rows).logits
        return torch.stack([logits.logsumexp(-1).sum(), torch.tensor(float(len(rows)))])

    loss(tokens)[0].backward()
    expected = [weight.grad for weight in weights]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        total, rows = backward([lambda: loss(tokens[:3]), lambda: loss(tokens[3:])], [*weights, apart])
        found.append([weight.grad for weight in weights])
        assert rows == 8 and total.item() == pytest.approx(loss(tokens)[0].item(), rel=1e-6)
    assert apart.grad is None
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    torch.testing.assert_close(found[0], expected)
    backward([lambda: loss(tokens)], weights)
    torch.testing.assert_close([weight.grad for weight in weights], expected)
