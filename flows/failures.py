"""Friendly errors for failures outside of our control: what happened, what is kept, and what to do next.

Errors raised on purpose already have such a message. A full disk, exhausted memory and an unreachable server surface as
errors of some library; here they are recognised and raised as a `StageStopped`.
"""

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import requests

from alignment.errors import ConfigError, RLHFError, causes
from alignment.stage import Stage
from flows.disk import MachineFault, bytes_left, denied, disk_shown, full_disk, home_or_here, nearly_full
from flows.recipe.credentials import redacted, shown_address
from labeling.errors import LabelingError, ServerStartFailed, ServerUnavailable

ON_PURPOSE = (RLHFError, LabelingError)
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
# names of classes whose modules are slow to import, or above this one
ALSO_OF_SERVERS = {"NotReady", "RunStopped", "MlflowException", "RestException", "OperationalError"}
NO_FILE_NAME = {errno.ENAMETOOLONG, errno.ELOOP}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = (
    "no space left on device",
    "disk is full",
    "disk quota exceeded",
    "file too large",
    "file write failed",
    "unexpected pos",
)  # the last two are torch.save's messages for a file that could not be written
REFUSED = (401, 403)
BUSY = (502, 503, 504)  # Prefect's 503 means that its database is busy; a proxy before it answers the others
MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
RESUMES = "the same command resumes from there (in a deployment: `rlhf retry`)"


class NotYet(Exception):
    """Work that cannot finish yet although nothing failed; only the flow catches it."""


class StageStopped(RLHFError):
    """A stage that was stopped by an external failure; the message says what is kept and what to do."""


class RunStopped(RLHFError):
    """A run that was stopped between its stages."""


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Wrap a whole run: an unreachable server between stages is raised as a RunStopped with instructions."""
    try:
        yield
    except Exception as error:
        reason = explained(error)
        if isinstance(reason, StageStopped | MachineFault) and reason is not error:
            raise reason from error
        if isinstance(error, ON_PURPOSE):
            raise
        if refusal := refusing_server(error):
            raise RunStopped(f"the run stopped because {refusal}. Every finished stage is kept; {RESUMES}") from error
        server = unreachable_server(error)
        if not server:
            raise
        raise RunStopped(
            f"the run stopped because {server} did not answer after minutes of retries: `rlhf up` starts the local "
            f"servers. Every finished stage is kept; {RESUMES}"
        ) from error


def stage_stopped(error: BaseException, stage: Stage[Any], directory: Path) -> StageStopped | None:
    """The friendly error for one that ended a stage working in `directory`; None where the error needs no other."""
    if isinstance(error, ON_PURPOSE):
        return None
    kept = f"The work so far is kept in {directory}{_checkpoints(directory)}; {RESUMES}"
    if is_full(error) or (unreachable_server(error) and nearly_full(directory)):
        return StageStopped(
            f"stage '{stage.name}' has no disk space left ({disk_shown(directory)}; {_short(error)}): free some space. "
            f"{kept}"
        )
    if is_out_of_memory(error):
        lower = f"{stage.less_memory}, or " if stage.less_memory else ""
        return StageStopped(
            f"stage '{stage.name}' ran out of memory ({_short(error)}): {lower}end other processes "
            f"that use memory. {kept}; with changed options the stage starts over"
        )
    server = unreachable_server(error)
    if server:
        return StageStopped(
            f"stage '{stage.name}' stopped because {server} did not answer after minutes of retries: "
            f"`rlhf up` starts the local servers. {kept}"
        )
    if refusal := refusing_server(error):
        return StageStopped(f"stage '{stage.name}' stopped because {refusal}. {kept}")
    return None


def is_full(error: BaseException) -> bool:
    """Whether the error means a full disk, an exceeded quota or the maximum file size."""
    return any(
        (isinstance(cause, OSError) and cause.errno in FULL) or any(words in str(cause).lower() for words in FULL_WORDS)
        for cause in causes(error)
    )


def explained(error: BaseException) -> Exception | None:
    """The error to show last for one that ended a command: ours, or a fault of the machine; None for any other.

    A full disk makes every server fail, each in its own way, and an error that follows can hide the first one. So the
    disk is looked at whatever the error says, unless the error has nothing to do with disks and servers.
    """
    for cause in causes(error):
        if isinstance(cause, StageStopped | MachineFault | ConfigError):
            return cause
    if is_full(error):
        return full_disk(_full_place(error), _short(error))
    if plain := _denied(error) or _too_many_files(error):
        return plain
    if _is_of_servers(error) and nearly_full(home_or_here()):
        return full_disk(home_or_here(), _short(error))
    on_purpose = next((cause for cause in causes(error) if isinstance(cause, ON_PURPOSE)), None)
    return on_purpose or _no_file_name(error)


def _is_of_servers(error: BaseException) -> bool:
    """Whether an error is that of a server or a database, and a full disk may be behind it."""
    kinds = (ServerUnavailable, ServerStartFailed, httpx.HTTPError, requests.RequestException)
    return any(isinstance(cause, kinds) or type(cause).__name__ in ALSO_OF_SERVERS for cause in causes(error))


def _denied(error: BaseException) -> MachineFault | None:
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in DENIED and cause.filename is not None:
            return denied(str(cause.filename), str(cause.strerror))
    return None


def _no_file_name(error: BaseException) -> MachineFault | None:
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in NO_FILE_NAME:
            name = str(cause.filename)
            shown = name if len(name) < 200 else f"{name[:200]}…"
            return MachineFault(f"{shown!r} cannot be opened ({cause.strerror}): name another file")
    return None


def _too_many_files(error: BaseException) -> MachineFault | None:
    if not any(isinstance(cause, OSError) and cause.errno in TOO_MANY_FILES for cause in causes(error)):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MachineFault(
        f"too many files are open: a process may open {limit} (`ulimit -n`). Nothing that was finished is lost; raise "
        "the limit, as in `ulimit -n 4096`, and repeat the command"
    )


def _full_place(error: BaseException) -> Path:
    """The directory whose disk is full: of the file that the error names, else the home's or the temporary one."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL and isinstance(cause.filename, str):
            return Path(cause.filename).absolute().parent
    return min(home_or_here(), Path(tempfile.gettempdir()), key=bytes_left)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory, of the machine or of an accelerator, is exhausted."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and any(words in str(cause).lower() for words in MEMORY_WORDS))
        for cause in causes(error)
    )


def unreachable_server(error: BaseException) -> str:
    """The server that did not answer and so caused the error; "" for other errors."""
    for cause in causes(error):
        if isinstance(cause, requests.RequestException):
            return "MLflow" + (f" ({shown_address(str(cause.request.url))})" if cause.request is not None else "")
        if isinstance(cause, httpx.TransportError):
            return f"Prefect ({_short(cause)})"
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code in BUSY:
            return f"Prefect (status {cause.response.status_code})"
    return ""


def refusing_server(error: BaseException) -> str:
    """The server that refused the credentials and so caused the error, as a sentence; "" for other errors."""
    from mlflow.exceptions import MlflowException  # late: commands that need no MLflow do not wait for it

    for cause in causes(error):
        if isinstance(cause, MlflowException) and (status := cause.get_http_status_code()) in REFUSED:
            address = shown_address(os.environ.get("MLFLOW_TRACKING_URI", "no address"))
            return (
                f"MLflow ({address}) refuses the request with status {status}: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) to an account that may do this"
            )
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code in REFUSED:
            address = shown_address(os.environ.get("PREFECT_API_URL", "no address"))
            return (
                f"Prefect ({address}) refuses the request with status {cause.response.status_code}: set "
                "PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) to an account that may do this"
            )
    return ""


def _checkpoints(directory: Path) -> str:
    """The newest checkpoint of a stage, for the message."""
    checkpoints = [path for path in (directory / "checkpoint").glob("*") if path.suffix != ".partial"]
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    return "" if newest is None else f" (last checkpoint: {newest.name})"


def _short(error: BaseException) -> str:
    message = redacted(" ".join(str(error).split())) or type(error).__name__
    return message if len(message) < 200 else message[:200] + "…"
