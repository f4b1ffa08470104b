"""The benchmark's arithmetic: hand-computed values, medians of ratios, and rows whose baselines exist."""

import dataclasses
from types import SimpleNamespace

import pytest

from benchmarks.figures import Figures, update_flops
from benchmarks.report import markdown, summaries
from benchmarks.rows import GROWTH, ON_REQUEST, ROWS, Row, chosen

RUN = Figures(
    system="",
    episodes=100,
    response_tokens=2000,
    seconds=50,
    cpu_seconds=40,
    generate_seconds=10,
    score_seconds=10,
    update_seconds=30,
    padding_share=0.5,
    update_flops=3e11,
    baseline_mib=400,
    peak_mib=1000,
)


def test_least_work_of_an_update() -> None:
    """Width 2, feed-forward 3, one block: 34 weights; 10 tokens in 2 episodes of 5, of which 4 are responses."""
    config = SimpleNamespace(hidden_size=2, intermediate_size=3, num_hidden_layers=1, vocab_size=7)
    trunk = 2 * 34 * 10 + 2 * 2 * 10 * 5
    head = 2 * 2 * 7 * 4
    assert update_flops(config, prompt_tokens=6, response_tokens=4, episodes=2, epochs=4) == 12 * (2 * trunk + head)


def test_ratios_are_taken_within_a_round() -> None:
    """TRL takes 50, 100 and 25 s, ours 10, 25 and 10: ratios 5, 4, 2.5, though the ratio of medians is 5."""
    rows = [Row("TRL", trl=True), Row("ours", "TRL")]
    runs = [
        {"TRL": dataclasses.replace(RUN, seconds=a), "ours": dataclasses.replace(RUN, seconds=b, peak_mib=500)}
        for a, b in ((50, 10), (100, 25), (25, 10))
    ]
    theirs, ours = summaries(rows, runs, matrix_rate=2e10)
    assert theirs["speedup"] is None and theirs["episodes_per_second"] == 2
    assert ours["speedup"] == 4 and ours["memory_ratio"] == 0.5 and ours["matrix_share"] == pytest.approx(0.5)
    assert ours["memory_over_baseline_ratio"] == pytest.approx(100 / 600)
    facts = {"processor": "P", "cores": 2, "threads": 2, "rounds": 3, "matrix_gflops": 9, "versions": {}, "command": ""}
    assert "| ours | 10.00 | 4.00 | 1.00 | 200 |" in markdown(facts, [ours])


def test_rivals_come_along() -> None:
    everything = [*ROWS, *ON_REQUEST, *GROWTH]
    assert len({row.name for row in everything}) == len(everything)
    assert {row.rival for row in everything if row.rival} <= {row.name for row in everything if row.trl}
    assert [row.name for row in chosen(["separate bf16"], growth=False)] == ["TRL bf16", "separate bf16"]
    with pytest.raises(SystemExit, match="no row"):
        chosen(["nothing"], growth=False)
