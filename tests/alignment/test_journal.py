"""The metrics journal of a stage: written to disk first, rewound on resume, readable after a kill."""

import json

import pytest
from matplotlib.figure import Figure

from alignment.journal import Journal, read_metrics


def steps(journal: Journal) -> list[int]:
    return [line["step"] for line in journal.read()]


def test_values_are_written_and_heard(tmp_path) -> None:
    heard = []
    journal = Journal(tmp_path / "new", lambda values, step, at: heard.append((dict(values), step, at)))
    journal.log({"loss": 1, "kl": 0.5}, 3)
    (line,) = journal.read()
    assert line["step"] == 3 and line["values"] == {"loss": 1.0, "kl": 0.5}
    assert heard == [(line["values"], 3, line["timestamp_ms"])]
    assert line["timestamp_ms"] > 1_600_000_000_000


def test_what_is_not_finite_is_left_out(tmp_path) -> None:
    journal = Journal(tmp_path)
    journal.log({"loss": float("nan"), "kl": float("inf"), "reward": 2.0}, 1)
    assert journal.read()[0]["values"] == {"reward": 2.0}
    assert "NaN" not in journal.metrics_file.read_text()


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path) -> None:
    journal = Journal(tmp_path)
    journal.rewind(5)  # nothing there yet
    for step in (1, 2, 3, 4):
        journal.log({"loss": step}, step)
    journal.rewind(2)
    journal.log({"loss": 30}, 3)
    assert [(line["step"], line["values"]["loss"]) for line in journal.read()] == [(1, 1), (2, 2), (3, 30)]


def test_what_was_said_after_the_steps_is_said_after_them_again(tmp_path) -> None:
    journal = Journal(tmp_path)
    for values, step in (({"rows": 7}, 0), ({"loss": 1}, 1), ({"loss": 2}, 2), ({"accuracy": 0.5}, 0)):
        journal.log(values, step)
    before = [(line["step"], line["values"]) for line in journal.read()]
    resumed = Journal(tmp_path)
    resumed.rewind(1)
    for values, step in (({"loss": 2}, 2), ({"accuracy": 0.5}, 0)):
        resumed.log(values, step)
    assert [(line["step"], line["values"]) for line in resumed.read()] == before


def test_a_half_written_line_is_passed_over_and_then_removed(tmp_path) -> None:
    journal = Journal(tmp_path)
    journal.log({"loss": 1}, 1)
    with journal.metrics_file.open("a") as file:
        file.write('{"step": 2, "val')
    assert steps(journal) == [1]
    Journal(tmp_path).rewind(1)
    journal.log({"loss": 2}, 2)
    assert steps(journal) == [1, 2]
    assert [json.loads(line)["step"] for line in journal.metrics_file.read_text().splitlines()] == [1, 2]


def test_a_stage_that_begins_anew_writes_on_a_line_of_its_own(tmp_path) -> None:
    Journal(tmp_path).log({"loss": 1}, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "val')
    Journal(tmp_path).log({"loss": 2}, 2)
    assert steps(Journal(tmp_path)) == [1, 2]


def test_what_a_killed_run_had_said_is_not_said_again(tmp_path) -> None:
    Journal(tmp_path).log({"read": 500}, 0)
    journal = Journal(tmp_path)
    journal.log({"read": 500}, 0)
    journal.log({"read": 500, "rejected": 2}, 0)
    assert [line["values"] for line in journal.read()] == [{"read": 500}, {"rejected": 2}]
    journal.rewind(-1)
    journal.log({"read": 500}, 0)
    assert [line["values"] for line in journal.read()] == [{"read": 500}]


def test_a_missing_file_has_no_lines(tmp_path) -> None:
    assert Journal(tmp_path).read() == []
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "metrics.jsonl")


def test_figures_and_notes_lie_where_they_are_looked_for(tmp_path) -> None:
    journal = Journal(tmp_path)
    assert journal.figure("loss", Figure()) == tmp_path / "figures" / "loss.png"
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    journal.note("imported", ["one", "two"])
    assert (tmp_path / "notes" / "imported.txt").read_text() == "one\ntwo\n"
