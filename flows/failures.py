"""How a run ends that cannot go on: what happened, what is kept, and what to do, in words.

Errors raised on purpose speak for themselves. A full disk, memory that is used up and a server that stays away surface
as errors of whatever library met them; here they are told apart, and become a `StageStopped`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import requests

from alignment.errors import RLHFError
from alignment.stage import Stage
from labeling.errors import LabelingError

ON_PURPOSE = (RLHFError, LabelingError)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = (
    "no space left on device",
    "disk is full",
    "disk quota exceeded",
    "file too large",
    "file write failed",
    "unexpected pos",
)  # the last two are torch.save's words for a file that could not be written
MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
RESUMES = "the same command goes on from there (in a deployment: `rlhf retry`)"


class NotYet(Exception):
    """Work that cannot be finished now although nothing failed; only the flow catches it."""


class StageStopped(RLHFError):
    """A stage that cannot go on for a reason outside of it; the message says what is kept and what to do."""


class RunStopped(RLHFError):
    """A run that ended between its stages."""


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Around a whole run: a server that stays away between stages ends it in words."""
    try:
        yield
    except Exception as error:
        server = "" if isinstance(error, ON_PURPOSE) else unreachable_server(error)
        if not server:
            raise
        raise RunStopped(
            f"the run stopped because {server} did not answer, though it was asked again for minutes: `rlhf up` starts "
            f"the local servers. Every finished stage is kept; {RESUMES}"
        ) from error


def stage_stopped(error: BaseException, stage: Stage[Any], place: Path) -> StageStopped | None:
    """What a person is told of an error that ended a stage working in `place`; None where it speaks for itself."""
    if isinstance(error, ON_PURPOSE):
        return None
    kept = f"What was done is kept in {place}{_checkpoints(place)}; {RESUMES}"
    if is_full(error):
        return StageStopped(
            f"stage '{stage.name}' has no room left to write ({_short(error)}): free some space. {kept}"
        )
    if is_out_of_memory(error):
        lower = f"{stage.less_memory}, or " if stage.less_memory else ""
        return StageStopped(
            f"stage '{stage.name}' needs more memory than there is ({_short(error)}): {lower}end what else "
            f"uses memory. {kept}; with other options the stage begins anew"
        )
    server = unreachable_server(error)
    if server:
        return StageStopped(
            f"stage '{stage.name}' stopped because {server} did not answer, though it was asked again for minutes: "
            f"`rlhf up` starts the local servers. {kept}"
        )
    return None


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or the largest size of a file was reached."""
    return any(
        (isinstance(one, OSError) and one.errno in FULL) or any(words in str(one).lower() for words in FULL_WORDS)
        for one in causes(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of an accelerator, was used up."""
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or (isinstance(one, RuntimeError) and any(words in str(one).lower() for words in MEMORY_WORDS))
        for one in causes(error)
    )


def unreachable_server(error: BaseException) -> str:
    """The server whose silence caused the error; "" when none did."""
    for one in causes(error):
        if isinstance(one, requests.RequestException):
            return "MLflow" + (f" ({one.request.url})" if one.request is not None else "")
        if isinstance(one, httpx.TransportError):
            return f"Prefect ({_short(one)})"
    return ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it, the latest first."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def _checkpoints(place: Path) -> str:
    """The newest checkpoint of a stage, for the message."""
    found = [path for path in (place / "checkpoint").glob("*") if path.suffix != ".partial"]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return "" if newest is None else f" (last checkpoint: {newest.name})"


def _short(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) < 200 else words[:200] + "…"
