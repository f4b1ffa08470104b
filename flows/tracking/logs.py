"""Logs of runs as JSON lines in `home/logs/runs/RUN.jsonl`, one file for each pipeline run, in addition to Prefect's.

A line has time (UTC), level, logger, message, the ids of the pipeline's run (`run_id`) and of the flow run, and inside
a stage its name (`stage`) and its run (`stage_run_id`). Secrets of the environment and of the home are redacted. A file
is rotated at LONGEST_BYTES, and one older file is kept.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from alignment.errors import ArtifactError
from flows.home import home_directory
from flows.recipe.credentials import SHORTEST_SECRET, redacted, secrets_of

FOLDER = Path("logs") / "runs"
LONGEST_BYTES = 20_000_000
OURS = ("flows", "alignment", "labeling")
POLL_SECONDS = 0.5
notes = logging.getLogger("rlhf.runs")  # goes to the file only: Prefect's console has equivalent lines
_stage: ContextVar[Mapping[str, str]] = ContextVar("stage", default={})  # noqa: B039  (never changed in place)


class JsonLines(logging.Formatter):
    """Formats a record as a line of JSON, with `ids` in every line and `secrets` redacted."""

    def __init__(self, ids: Mapping[str, str], secrets: frozenset[str]) -> None:
        super().__init__()
        self._ids, self._secrets = dict(ids), secrets

    def format(self, record: logging.LogRecord) -> str:
        """Format the line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage(), self._secrets),
            **self._ids,
            **_stage.get(),
        }
        task = getattr(record, "task_run_name", None)
        if task is not None:
            fields["task"] = task
        if record.exc_info:
            fields["traceback"] = redacted(self.formatException(record.exc_info), self._secrets)
        return json.dumps(fields, ensure_ascii=False)


class LogFile(RotatingFileHandler):
    """A file of lines; a line that the disk has no space for is dropped, and the run goes on or ends by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that could not be written; report other errors as the library does."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, also when its last line cannot be written."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to_file(name: str, **ids: str) -> Iterator[Path]:
    """Log the block to the file of the run `name`; every line has the `ids` that are not empty."""
    home = home_directory()
    path = home / FOLDER / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, maxBytes=LONGEST_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(JsonLines({key: value for key, value in ids.items() if value}, known_secrets(home)))
    notes.setLevel(logging.INFO)
    notes.propagate = False
    loggers = [logging.getLogger(name) for name in (*OURS, "prefect")]
    levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    for logger in (*loggers, notes):
        logger.addHandler(handler)
    try:
        yield path
    finally:
        for logger in (*loggers, notes):
            logger.removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)
        handler.close()


@contextmanager
def log_context(**ids: str) -> Iterator[None]:
    """Add ids such as the stage to every line logged in the block. An error is logged and raised."""
    token = _stage.set({**_stage.get(), **ids})
    try:
        yield
    except BaseException as error:
        if "stage" in ids:
            notes.warning("ended with %s: %s", type(error).__name__, error)
        raise
    finally:
        _stage.reset(token)


def known_secrets(home: Path) -> frozenset[str]:
    """The secrets of the environment and of the stack in `home`."""
    path = home / "credentials.json"
    try:
        credentials = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):  # `rlhf doctor` reports it; a log needs no credentials
        credentials = {}
    values = {**credentials, **(credentials.get("production") or {})}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    known = {value for name, value in texts.items() if not name.endswith(("email", "username"))}
    known.add(texts.get("prefect_auth", "").partition(":")[2])  # USER:PASSWORD
    return secrets_of() | {value for value in known if len(value) >= SHORTEST_SECRET}


def find_log(run: str = "") -> Path:
    """The log file of a run, by a prefix of its MLflow or Prefect id, or the newest of a recipe; for "" the newest that
    this account wrote. Raises ArtifactError."""
    directory = home_directory() / FOLDER
    files = sorted(directory.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    matching = [path for path in files if (_is_called(path, run) if run else path.stat().st_uid == os.geteuid())]
    if not matching:
        known = ", ".join(f"{path.stem} ({first_line(path).get('recipe', '?')})" for path in files[-5:])
        hint = f"the newest are {known}" if known else "there is none yet, `rlhf run` creates one"
        raise ArtifactError(f"no run{f' {run!r}' if run else ' of this account'} has a log in {directory}: {hint}")
    return matching[-1]


def _is_called(path: Path, run: str) -> bool:
    line = first_line(path)
    return path.name.startswith(run) or str(line.get("flow_run_id", "")).startswith(run) or line.get("recipe") == run


def first_line(path: Path) -> dict[str, Any]:
    """The first line of a log, which has the ids of its run; {} for a file without one."""
    with path.open(encoding="utf-8") as file:
        return _parse(file.readline())


def read_log(path: Path, stage: str = "", follow: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
    """The lines of a file, or those of a stage; while `follow` returns True, wait for new lines."""
    with path.open(encoding="utf-8") as file:
        rest = ""
        while True:
            rest += file.readline()
            if not rest.endswith("\n"):
                if not follow():
                    return
                time.sleep(POLL_SECONDS)
                continue
            line, rest = _parse(rest), ""
            if line and stage in ("", line.get("stage")):
                yield line


def _parse(text: str) -> dict[str, Any]:
    """Parse a line; {} for a partial line of a killed process."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def as_text(line: Mapping[str, Any]) -> str:
    """A line as text for the terminal."""
    where = str(line.get("stage") or line.get("task") or "-")
    head = f"{str(line['time'])[:19].replace('T', ' ')} {line['level']:<7} {where:<13} {line['message']}"
    return "\n".join([head, *(f"    {text}" for text in str(line.get("traceback", "")).splitlines())])
