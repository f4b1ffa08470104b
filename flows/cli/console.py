"""What a person at the terminal sees of a run: errors raised on purpose in words, all others with their traceback."""

import copy
import logging
import math
import time

from alignment.errors import RLHFError
from labeling.errors import LabelingError

EVENTS = ("prefect.events.clients", "prefect._internal.concurrency")
OURS = ("flows", "alignment", "labeling")
ON_PURPOSE = (RLHFError, LabelingError)


class InWords(logging.Formatter):
    """Formats as another formatter does, without the traceback of an error raised on purpose.

    The record itself stays whole, so Prefect's pages still show where the error came from.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback only for what was not expected."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, ON_PURPOSE):
            return self._inner.format(record)
        bare = copy.copy(record)
        bare.exc_info, bare.exc_text = None, None
        return self._inner.format(bare)


class OnceAMinute(logging.Filter):
    """While Prefect's server is away its client says so of every event, at length, though it sends all of them later.

    One line a minute is enough.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a warning through when none was for a minute, cut short."""
        if record.levelno < logging.WARNING or time.monotonic() - self._said_at < 60.0:
            return record.levelno < logging.WARNING
        self._said_at = time.monotonic()
        record.msg, record.args = record.getMessage()[:120], ()
        return True


def speak_in_words() -> None:
    """Show what our own packages tell, and leave out tracebacks of errors raised on purpose."""
    for package in OURS:
        logging.getLogger(package).setLevel(logging.INFO)
    quiet = OnceAMinute()
    for name in EVENTS:
        logging.getLogger(name).addFilter(quiet)
    for name in ("", "prefect"):
        for handler in logging.getLogger(name).handlers:
            inner = handler.formatter
            if isinstance(handler, logging.StreamHandler) and inner is not None and not isinstance(inner, InWords):
                handler.setFormatter(InWords(inner))
