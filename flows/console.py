"""What the commands write to the terminal: text from outside stays text, and errors of ours have no traceback.

Names, titles, comments, model output and file names come from others. All commands write through `echo` and `console`,
and log lines pass `TerminalLines`, so that none of it moves the cursor, changes a title or looks like another line.
"""

import copy
import logging
import math
import time
from collections.abc import Iterable

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typer import rich_utils

from alignment.errors import RLHFError
from labeling.errors import LabelingError
from labeling.tasks.characters import terminal_text

EVENTS = ("prefect.events.clients", "prefect._internal.concurrency")
OURS = ("flows", "alignment", "labeling")
ON_PURPOSE = (RLHFError, LabelingError)


def echo(text: str, *, err: bool = False, lines: bool = False) -> None:
    """Print a line; with `lines`, a text of several lines."""
    typer.echo(terminal_text(text, lines=lines), err=err)


class TerminalConsole(Console):
    """A console whose texts are shown as they are; its own colours stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, with control characters made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal_text(segment.text, lines=True), segment.style)


vars(rich_utils)["Console"] = TerminalConsole  # with which typer draws its boxes about options


def console() -> TerminalConsole:
    """A console on standard output."""
    return TerminalConsole()


class TerminalLines(logging.Formatter):
    """Formats as another formatter does, without the traceback of our own errors.

    Control characters are made visible, and further lines of a record are indented, so that they look like no record.

    The record itself is unchanged, so Prefect's pages still show the traceback.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback only for unexpected errors."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, ON_PURPOSE):
            return _indented(self._inner.format(record))
        bare = copy.copy(record)
        bare.exc_info, bare.exc_text = None, None
        return _indented(self._inner.format(bare))


def _indented(text: str) -> str:
    """A text whose lines after the first one are indented."""
    return terminal_text(text, lines=True).replace("\n", "\n  ")


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
                and not isinstance(inner, TerminalLines)
            ):
                handler.setFormatter(TerminalLines(inner))
