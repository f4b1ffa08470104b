"""Progress of the corpus: what is done, at which rate, and what is left."""

import logging

import pytest

from alignment.data import progress


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
