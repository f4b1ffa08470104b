"""Run logs: one file per run, lines that name run and stage, no secrets, and a command that prints them."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignment.config.stages import SFTConfig
from alignment.errors import ArtifactError
from flows.cli.main import app
from flows.tracking import logs, runs
from tests.flows.tiny import Counted, run_stage

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of runs are kept below this test's directory."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))


def lines(path: Path) -> list[dict[str, str]]:
    return list(logs.read_log(path))


def test_a_run_leaves_lines_that_name_it_and_the_stage(home: Path) -> None:
    with runs.pipeline_run("tiny", recipe=SFTConfig(), flow_run_id="flow-7") as run_id:
        logging.getLogger("flows.somewhere").info("between stages")
        made = run_stage("sft", lambda out, journal: Counted()(out, journal), config=SFTConfig())
        run_stage("sft", Counted(), config=SFTConfig())
    logging.getLogger("flows.somewhere").warning("after the run")
    said = lines(logs.find_log(run_id[:8]))
    assert said == lines(logs.find_log("flow-7")) == lines(logs.find_log())
    assert {line["run_id"] for line in said} == {run_id} and {line["flow_run_id"] for line in said} == {"flow-7"}
    assert [line["message"] for line in said if "stage" not in line] == ["between stages"]
    in_stage = [line for line in said if line.get("stage") == "sft"]
    lost = next(line for line in in_stage if "not finite" in line["message"])
    assert (
        lost["level"] == "WARNING" and lost["logger"] == "flows.tracking.runner" and lost["stage_run_id"] == made.run_id
    )
    assert [line["message"][:6] for line in in_stage if line["logger"] == "rlhf.runs"] == ["finish", "cached"]
    assert all(line["time"].endswith("+00:00") for line in said)


def test_a_stage_that_fails_says_so_with_its_name(home: Path) -> None:
    with pytest.raises(RuntimeError), runs.pipeline_run("tiny", recipe=SFTConfig()) as run_id:
        run_stage("sft", Counted(failures=1), config=SFTConfig())
    (failed,) = [line for line in lines(logs.find_log(run_id)) if "ended" in line["message"]]
    assert (failed["stage"], failed["message"]) == ("sft", "ended with RuntimeError: killed")
    assert not logging.getLogger("flows").handlers  # nothing is left behind


def test_a_resumed_run_goes_on_in_the_same_file_and_lines_of_threads_name_the_run(tmp_path: Path) -> None:
    log = logging.getLogger("labeling.tests")
    for word in ("one", "two"):
        with logs.log_to_file("run-1", run_id="run-1") as path:
            thread = threading.Thread(target=lambda word=word: log.info(word))
            thread.start()
            thread.join()
    assert [(line["message"], line["run_id"]) for line in lines(path)] == [("one", "run-1"), ("two", "run-1")]


def test_secrets_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", SECRET)
    credentials = {"label_studio_password": "pass-word-9", "production": {"prefect_auth": "rlhf:secret-77"}}
    (tmp_path / "credentials.json").write_text(json.dumps(credentials))
    log = logging.getLogger("flows.tests")
    with logs.log_to_file("run-1") as path:
        try:
            raise ValueError(f"refused: {SECRET}")
        except ValueError:
            log.exception("with %s", {"headers": f"Token {SECRET}"})
        log.warning("at http://me:%s@host with pass-word-9", "another")
        log.warning("as %s", "rlhf:secret-77")
        log.warning("by the proxy %s", "bob:another@proxy:3128")
    text = path.read_text()
    assert SECRET not in text and "another" not in text and "pass-word-9" not in text and "secret-77" not in text
    assert "refused: ***" in lines(path)[0]["traceback"] and lines(path)[1]["message"].endswith("***@host with ***")


def test_a_file_is_bounded_and_a_torn_line_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LONGEST_BYTES", 10_000)
    log = logging.getLogger("flows.tests")
    with logs.log_to_file("run-1") as path:
        for number in range(300):
            log.info("line %d %s", number, "x" * 100)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["run-1.jsonl", "run-1.jsonl.1"]
    assert all(file.stat().st_size <= 10_000 for file in files)
    with path.open("a") as file:
        file.write('{"message": "cut o')
    assert lines(path)[-1]["message"].startswith("line 299")


def test_the_command_prints_a_run_and_says_what_there_is(tmp_path: Path) -> None:
    log = logging.getLogger("flows.tests")
    told = {"RLHF_HOME": str(tmp_path)}
    nothing = CliRunner().invoke(app, ["logs"], env=told)
    assert isinstance(nothing.exception, ArtifactError) and "there is none yet" in str(nothing.exception)
    with logs.log_to_file("abc-1"), logs.log_context(stage="sft"):
        log.info("in a stage [bold]as it is")
    with logs.log_to_file("abd-2"):
        log.info("newest")
    assert "newest" in CliRunner().invoke(app, ["logs"], env=told).output
    shown = CliRunner().invoke(app, ["logs", "abc", "--stage", "sft"], env=told).output
    assert "INFO    sft           in a stage [bold]as it is" in shown
    assert json.loads(CliRunner().invoke(app, ["logs", "abd", "--json"], env=told).stdout)["message"] == "newest"
    unknown = CliRunner().invoke(app, ["logs", "zzz"], env=told)
    assert "no run 'zzz' has a log" in str(unknown.exception) and "abc-1 (?), abd-2 (?)" in str(unknown.exception)


def test_what_is_written_meanwhile_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.01)
    path = tmp_path / "run.jsonl"
    path.write_text('{"message": "one"}\n{"mess')
    said, waited = [], []

    def follow() -> bool:
        waited.append(1)
        if len(waited) == 1:
            with path.open("a") as file:
                file.write('age": "two"}\n')
        return len(waited) < 3

    said = [line["message"] for line in logs.read_log(path, follow=follow)]
    assert said == ["one", "two"]


def test_a_full_disk_drops_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    with logs.log_to_file("run") as path:
        path.symlink_to("/dev/full")  # every write fails there as on a full disk
        logging.getLogger("flows").warning("a line")
    assert "Traceback" not in capsys.readouterr().err


def test_a_recipe_names_its_newest_log_and_none_names_that_of_this_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, recipe in enumerate(("town", "tiny", "town")):
        with logs.log_to_file(f"run-{number}", run_id=f"run-{number}", recipe=recipe) as path:
            logging.getLogger("flows.somewhere").info("a line")
        os.utime(path, (number, number))
    assert logs.find_log("town").stem == "run-2" and logs.find_log("tiny").stem == "run-1"
    shown = CliRunner().invoke(app, ["logs"])
    assert "rlhf: the log of town run-2, since 20" in shown.stderr and "a line" in shown.stdout
    monkeypatch.setattr(logs.os, "geteuid", lambda: -1)
    with pytest.raises(ArtifactError, match=r"no run of this account has a log in .*run-1 \(tiny\), run-2 \(town\)"):
        logs.find_log()
