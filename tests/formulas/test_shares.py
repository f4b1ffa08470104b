"""Processes sample and score shares of a rollout: whitening and advantages equal those of the whole, in order."""

from types import ModuleType

import numpy as np
import pytest
import torch

from alignment.distributed import collectives as processes
from alignment.ppo import rollout, shares
from alignment.ppo.config import PPOConfig
from alignment.ppo.episodes import Episodes, Rollout, Scored
from alignment.rewards.components import RuleReward
from tests.formulas.test_advantages import _naive

LENGTHS, BETA, GAMMA, LAMBDA = [7, 1, 4, 6, 3, 5, 2], 0.2, 0.9, 0.8
CPU = torch.device("cpu")


def _scored(rows: list[int]) -> Scored:
    """Episodes of the given rows; what row i holds does not depend on the others."""
    lengths = torch.tensor([LENGTHS[row] for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    numbers = torch.zeros(3, *mask.shape, dtype=torch.float64)
    for i, row in enumerate(rows):
        drawn = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(row))
        numbers[:, i, : LENGTHS[row]] = drawn[:, : LENGTHS[row]] + row
    sequences = [[row] * (1 + LENGTHS[row]) for row in rows]
    ended = torch.tensor([row % 2 == 0 for row in rows])
    episodes = Episodes(sequences, [1] * len(rows), mask, numbers[0], numbers[0] / 2, ended)
    scores = {"a": torch.tensor([row / 2 for row in rows], dtype=torch.float64)}
    return Scored(episodes, scores, numbers[1], numbers[2], real_positions=sum(map(len, sequences)), positions=100)


def _parts(count: int) -> list[list[int]]:
    return [list(range(7))[number::count] for number in range(count)]


def _rollout(scored: Scored) -> Rollout:
    config = PPOConfig(whiten_rewards=True, gamma=GAMMA, gae_lambda=LAMBDA, missing_eos_penalty=0.5)
    return rollout.rollout_of(scored, [RuleReward("a", 2.0, lambda p, r: [])], config, BETA)


def _expected() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rewards by the formula, divided by the deviation over all tokens; advantages summed one by one and whitened."""
    alone = [_scored([row]) for row in range(7)]
    rewards, values = [], [s.values[0].numpy() for s in alone]
    for row, s in enumerate(alone):
        r = -BETA * (s.episodes.logprobs - s.reference_logprobs)[0].numpy()
        r[-1] += 2 * (row / 2) - (0 if row % 2 == 0 else 0.5)
        rewards.append(r)
    deviation = np.concatenate(rewards).std()
    plain = [_naive(r / deviation, v, GAMMA, LAMBDA) for r, v in zip(rewards, values, strict=True)]
    every = np.concatenate(plain)
    return [(a - every.mean()) / every.std() for a in plain], [a + v for a, v in zip(plain, values, strict=True)]


def check_whitening_over_shares(m: ModuleType) -> None:
    for count in (1, 2, 3, 7):
        found = _rollout(m.joined([_scored(rows) for rows in _parts(count)], CPU))
        for row, (advantages, returns) in enumerate(zip(*_expected(), strict=True)):
            n = LENGTHS[row]
            assert found.episodes.sequences[row] == [row] * (1 + n)
            assert torch.equal(found.episodes.sampler_logprobs[row, :n] * 2, found.episodes.logprobs[row, :n])
            np.testing.assert_allclose(found.advantages[row, :n], advantages, atol=1e-6)  # ε = 1e-8 under the roots
            np.testing.assert_allclose(found.returns[row, :n], returns, atol=1e-6)
            assert not found.advantages[row, n:].any()


def check_order(m: ModuleType) -> None:
    rows = list(range(7))
    for count in (1, 2, 3, 9):
        assert m.interleaved([rows[number::count] for number in range(count)]) == rows


def test_whitening_sees_the_whole_rollout() -> None:
    check_whitening_over_shares(shares)


def test_each_share_by_itself_would_differ() -> None:
    """Else the test above says nothing."""
    apart = [_rollout(_scored(rows)) for rows in _parts(2)]
    expected, _ = _expected()
    assert abs(apart[0].advantages[0, :7].numpy() - expected[0]).max() > 0.1


def test_order() -> None:
    check_order(processes)


@pytest.mark.parametrize("count", [2, 3])
def test_padding_share_counts_all(count: int) -> None:
    joined = shares.joined([_scored(rows) for rows in _parts(count)], CPU)
    assert _rollout(joined).padding_share == pytest.approx(1 - (7 + sum(LENGTHS)) / (100 * count))
