"""Progress in the log: steps, rate and the time left, for our loops and for TRL's trainers."""

import logging

import pytest

from alignment import progress
from alignment.progress import Progress, steps


def test_the_rate_and_the_time_left_are_of_the_steps_of_this_run() -> None:
    resumed = Progress("sft", total=100, done=40)
    resumed.reach(50)
    assert resumed.line(20.0) == "sft: step 50 of 100, 2 seconds a step, about 0:01:40 left"
    assert resumed.line(2.0) == "sft: step 50 of 100, 5 steps a second, about 0:00:10 left"
    resumed.close()


def test_lines_come_at_intervals_from_the_first_process_alone(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="alignment.progress")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert list(steps("reward", 2, 5)) == [3, 4, 5]
    assert [message.split(",")[0] for message in caplog.messages] == [f"reward: step {n} of 5" for n in (3, 4, 5)]
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    assert list(steps("reward", 0, 2)) == [1, 2] and not caplog.messages


@pytest.mark.parametrize("total", [0, 3])
def test_nothing_to_do_is_no_error(total) -> None:
    assert list(steps("pretrain", total, total)) == []
