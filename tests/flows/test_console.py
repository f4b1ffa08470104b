"""Expected errors print a message without traceback; all others keep their traceback; log records stay complete."""

import io
import logging

import pytest

from alignment.errors import GateError
from flows.console import TerminalLines
from labeling.errors import TaskError


def written(error: Exception) -> tuple[str, str]:
    """What a wrapped and a plain handler write of the same record."""
    log, texts = logging.Logger("alone"), (io.StringIO(), io.StringIO())
    for number, text in enumerate(texts):
        handler = logging.StreamHandler(text)
        plain = logging.Formatter("%(message)s")
        handler.setFormatter(plain if number else TerminalLines(plain))
        log.addHandler(handler)
    try:
        raise error
    except Exception:
        log.exception("failed")
    return texts[0].getvalue(), texts[1].getvalue()


@pytest.mark.parametrize("error", [GateError("too low"), TaskError("no task")])
def test_an_error_raised_on_purpose_has_no_traceback(error: Exception) -> None:
    short, whole = written(error)
    assert short == "failed\n"
    assert "Traceback" in whole


def test_an_unexpected_error_keeps_its_traceback() -> None:
    assert "Traceback" in written(ZeroDivisionError("?"))[0]
