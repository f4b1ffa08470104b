"""From sequence scores to token rewards."""

from types import ModuleType

import pytest
import torch

from alignment.ppo import shaping

F64 = torch.float64
SCORES = torch.tensor([2.0, -3.0, 0.5], dtype=F64)


def check_token_rewards(m: ModuleType) -> None:
    """The score stands on the last response token, not one after it; KL is a cost on every response token."""
    kl = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    found = m.token_rewards(SCORES, kl, mask, 0.1)
    expected = [[-0.1, -0.2, 1.7, 0.0], [-3.1, 0.0, 0.0, 0.0], [-0.1, -0.2, -0.3, 0.1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def check_missing_eos(m: ModuleType) -> None:
    ended = torch.tensor([True, False, False])
    assert m.missing_eos_score(SCORES, ended, 1.5, "subtract").tolist() == [2.0, -4.5, -1.0]
    assert m.missing_eos_score(SCORES, ended, 1.5, "replace").tolist() == [2.0, -1.5, -1.5]


def check_length_and_clip(m: ModuleType) -> None:
    assert m.length_penalised(SCORES, torch.tensor([1, 2, 4]), 0.25).tolist() == [1.75, -3.5, -0.5]
    assert m.clipped_score(SCORES, 1.0).tolist() == [1.0, -1.0, 0.5]
    assert m.clipped_score(SCORES, None).tolist() == SCORES.tolist()


@pytest.mark.parametrize("check", [check_token_rewards, check_missing_eos, check_length_and_clip])
def test_formula(check) -> None:
    check(shaping)
