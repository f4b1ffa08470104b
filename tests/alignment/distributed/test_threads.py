"""Two concurrent jobs: results, failures, and independence of their order."""

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
from tests.rounding import assert_same_but_for_rounding

CPU = torch.device("cpu")
ROUNDING = 1e-5  # of a tensor's size: single precision has 6e-8, and gradients are differences of sums; seen: 3e-7


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
def test_one_thread_or_two_give_the_same_gradients_but_for_rounding(layout, threads) -> None:
    """Two threads share a product out in other blocks, which other kernels may add up in another order."""
    torch.set_num_threads(1)
    config = world.config(layout=layout)
    components = reward_components(world.reward_model(), world.tokenizer())
    models = lay_out(config, world.policy(), None, None, components)
    uniforms = torch.rand(16, config.max_new_tokens, generator=torch.Generator().manual_seed(0))
    episodes = sample_episodes(models.policy, world.PROMPTS[:16], config, {world.EOS}, uniforms)
    scoring = (components, models.reference, models.policy, models.value_model, world.tokenizer(), config)
    learner = Learner.of(models.policy, models.value_model, config)
    weights = [*learner.policy_weights.values(), *learner.value_weights.values()]

    def scores_and_gradients(count: int, rows: range = range(16)) -> list[torch.Tensor]:
        torch.set_num_threads(count)
        scored = score_episodes(episodes, *scoring)
        rollout = rollout_of(scored, components, config, 0.1)
        for weight in weights:
            weight.grad = None
        accumulate_gradients(learner, rollout, rows, config)
        return [scored.values, scored.reference_logprobs, *(w.grad for w in weights if w.grad is not None)]

    one, two = scores_and_gradients(1), scores_and_gradients(2)
    assert sum(bool(tensor.any()) for tensor in one) > 10
    assert_same_but_for_rounding(two, one, ROUNDING)
    with pytest.raises(AssertionError):
        assert_same_but_for_rounding(scores_and_gradients(2, range(15)), one, ROUNDING)  # one of 16 episodes dropped


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
    assert_same_but_for_rounding(found[1], found[0], ROUNDING)
    assert_same_but_for_rounding(found[0], expected, ROUNDING)
    backward([lambda: loss(tokens)], weights)
    assert_same_but_for_rounding([weight.grad for weight in weights], expected, ROUNDING)
