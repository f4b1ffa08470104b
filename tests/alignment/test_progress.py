"""Progress: what is done, at which rate, and what is left, in the log."""

import logging
import threading
import time

import pytest

from alignment import progress
from alignment.progress import Progress, steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_log_has_rate_and_time_left(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress.progress("corpus", 100e6, "B") as shown:
        shown.skip(20e6)  # by an earlier run: not part of the rate
        clock[0] += 10
        shown.add(20e6)
        assert not caplog.messages
        assert shown.line() == "corpus: 40 of 100 MB, 2 MB/s, 30 seconds left"
        clock[0] += 30
        shown.add(20e6)
    assert caplog.messages == ["corpus: 60 of 100 MB, 1 MB/s, 40 seconds left"]


def test_without_a_known_size_there_is_a_rate_alone(clock: list[float]) -> None:
    with progress.progress("shards", None, "documents") as shown:
        clock[0] += 4
        shown.add(10)
        assert shown.line() == "shards: 10 documents, 2.5 documents/s"


def test_the_rate_is_of_the_steps_of_this_run(clock: list[float]) -> None:
    resumed = Progress("sft", total=100)
    resumed.skip(40)
    clock[0] += 20
    resumed.reach(50)
    assert resumed.line() == "sft: 50 of 100 steps, 0.5 steps/s, 2 minutes left"
    resumed.close()


def test_lines_come_at_intervals_from_the_first_process_alone(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="alignment.progress")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert list(steps("reward", 2, 5)) == [3, 4, 5]
    assert [message.split(",")[0] for message in caplog.messages] == [f"reward: {n} of 5 steps" for n in (3, 4, 5)]
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    assert list(steps("reward", 0, 2)) == [1, 2] and not caplog.messages


@pytest.mark.parametrize("total", [0, 3])
def test_nothing_to_do_is_no_error(total) -> None:
    assert list(steps("pretrain", total, total)) == []


def test_a_slow_step_has_lines_too_and_a_listener_hears_them_elsewhere(monkeypatch, caplog) -> None:
    """The listener may wait for a server, so it is called by another thread than the work."""
    caplog.set_level(logging.INFO, logger="alignment.progress")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.3)
    heard: list[tuple[progress.Report, str]] = []
    with (
        progress.listen(lambda report: heard.append((report, threading.current_thread().name))),
        progress.progress("ppo", 4, "steps") as shown,
    ):
        shown.add(1)
        shown.describe("reward 0.5, KL 1.2")
        time.sleep(1.3)
    assert any("ppo: 1 of 4 steps" in line and "the next since" in line for line in caplog.messages)
    assert caplog.messages[-1].endswith("reward 0.5, KL 1.2")
    report, thread = heard[-1]
    assert (report.name, report.share, thread) == ("ppo", 0.25, "progress-ppo")


def test_slow_steps_are_counted_in_seconds_of_each(clock: list[float]) -> None:
    slow = Progress("ppo", total=20)
    clock[0] += 600
    slow.add(2)
    assert slow.line() == "ppo: 2 of 20 steps, 5 minutes each, 1.5 hours left"
    slow.close()
