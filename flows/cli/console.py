"""Logging at the terminal: our own errors without a traceback, all others with one."""

import copy
import logging
import math
import time

from alignment.errors import RLHFError
from labeling.errors import LabelingError

EVENTS = ("prefect.events.clients", "prefect._internal.concurrency")
OURS = ("flows", "alignment", "labeling")
ON_PURPOSE = (RLHFError, LabelingError)


class WithoutTraceback(logging.Formatter):
    """Formats as another formatter does, without the traceback of our own errors.

    The record itself is unchanged, so Prefect's pages still show the traceback.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback only for unexpected errors."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, ON_PURPOSE):
            return self._inner.format(record)
        bare = copy.copy(record)
        bare.exc_info, bare.exc_text = None, None
        return self._inner.format(bare)


class OnceAMinute(logging.Filter):
    """Limits the warnings of Prefect's client to one a minute during an outage; events are sent later."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass a warning, truncated, if the last one is at least a minute old."""
        if record.levelno < logging.WARNING or time.monotonic() - self._last < 60.0:
            return record.levelno < logging.WARNING
        self._last = time.monotonic()
        record.msg, record.args = record.getMessage()[:120], ()
        return True


def configure_logging() -> None:
    """Show the log lines of our packages, without the traceback of our own errors."""
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    quiet = OnceAMinute()
    for name in EVENTS:
        logging.getLogger(name).addFilter(quiet)
    for name in ("", "prefect"):
        for handler in logging.getLogger(name).handlers:
            inner = handler.formatter
            if (
                isinstance(handler, logging.StreamHandler)
                and inner is not None
                and not isinstance(inner, WithoutTraceback)
            ):
                handler.setFormatter(WithoutTraceback(inner))
