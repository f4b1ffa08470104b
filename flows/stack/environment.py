"""Which servers a command uses. Prefect and MLflow read their variables on import, so this comes before any import.

The rule, the same for every command (docs/operations.md, "Servers elsewhere"):

- A home with a stack uses its Prefect and its MLflow. Variables that name other servers, or accounts of other servers,
  are removed, with a line on stderr.
- A home without a stack uses the servers that the environment names: PREFECT_API_URL, MLFLOW_TRACKING_URI,
  LABEL_STUDIO_URL.
- LABEL_STUDIO_URL with LABEL_STUDIO_API_KEY is a team's own Label Studio, also beside a stack.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from flows.home import home_directory, keep_files_private
from flows.stack import stack, state
from flows.stack.health import ADDRESSES, check_address
from flows.stack.processes import StackError
from flows.stack.proxies import direct_loopback, malformed_proxies, unreadable_exemptions, unusable_proxies
from flows.stack.services import LABEL_STUDIO, NAMES, NO_TEMPORARY_SERVER, QUIET, SAFE_PATH, TITLES, Name
from labeling.tasks.characters import terminal_text

SILENT_SECONDS, BRIEF_SECONDS, REPEAT_SECONDS = 2.0, 0.5, 10.0
_note_times = [0.0]  # the times of all notes
FOREIGN = (  # of Prefect and MLflow: other servers, accounts on them, and runs or experiments there
    *("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"),
    *("PREFECT_CLIENT_CUSTOM_HEADERS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"),
    *("MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"),
    *("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_WORKSPACE"),
)


def prepare() -> None:
    """Keep files private; switch off telemetry, Prefect's temporary server, proxies to this machine, and imports from
    the working directory in processes that this one starts.

    The first thing that a command does.
    """
    keep_files_private()
    for entry in unreadable_exemptions(os.environ):
        _note(f"{entry!r} in NO_PROXY is ignored, because it is neither a host, HOST:PORT nor an address")
    os.environ.update(QUIET | NO_TEMPORARY_SERVER | SAFE_PATH | direct_loopback(os.environ))
    for name in unusable_proxies(os.environ):
        scheme = os.environ.pop(name).partition(":")[0]
        _note(f"{name} is ignored, because proxies of the kind {scheme}:// are not supported; http:// is")
    for name in malformed_proxies(os.environ):
        del os.environ[name]
        _note(f"{name} is ignored, because it is not the address of a proxy: set it to http://HOST:PORT, or unset it")


def use_stack(*needed: Name, label_studio: str | None = None) -> None:
    """Point Prefect, MLflow and Label Studio at the servers of this home. Call it before either is imported.

    `label_studio` is the address of Label Studio that a recipe names. Raises StackError when a server in `needed` (all
    three by default) does not answer.
    """
    home, needed = home_directory(), needed or NAMES
    if label_studio and os.environ.get("LABEL_STUDIO_API_KEY"):
        os.environ.setdefault("LABEL_STUDIO_URL", label_studio)
    if not state.exists(home):
        _check_elsewhere(home, needed)
        _note(f"{home} has no stack, so this uses {addresses(needed)}, as the environment says")
        return
    own_label_studio = _label_studio_elsewhere(os.environ)
    ours = tuple(name for name in needed if name != "label-studio" or not own_label_studio)
    with waiting(f"waiting for {_listed(ours)} of the stack in {home}"):
        environment = stack.connect(home, ours).environment()
    if own_label_studio:
        _note(f"Label Studio is {_host(own_label_studio['LABEL_STUDIO_URL'])}, as LABEL_STUDIO_URL says")
        environment |= own_label_studio
    _ignore(home, foreign(os.environ, environment))
    os.environ.update(environment)
    if own_label_studio and "label-studio" in needed:
        _check_elsewhere(home, ("label-studio",))


def load_clients(*needed: Name) -> None:
    """Import the libraries of these servers, all by default, which takes seconds."""
    with waiting("loading the libraries"):
        for name in needed or NAMES:
            if name == "mlflow":
                import mlflow.tracking  # noqa: F401
            elif name == "prefect":
                from flows.results import refuse_results

                refuse_results()
            elif name == "label-studio":
                import labeling.server.client  # noqa: F401


def addresses(names: tuple[Name, ...]) -> str:
    """The servers with their addresses, for messages."""
    return " and ".join(f"{TITLES[name]} at {_host(os.environ[ADDRESSES[name]])}" for name in names)


def foreign(environment: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` about servers other than those in `ours`."""
    names = [name for name in FOREIGN if name in environment]
    if not _label_studio_elsewhere(environment):
        names += [name for name in LABEL_STUDIO if name in environment]
    return {name: environment[name] for name in names if environment[name].rstrip("/") != ours.get(name)}


def _ignore(home: Path, variables: Mapping[str, str]) -> None:
    """Remove variables about other servers, with one line on stderr: hosts, never values that may be secret."""
    for name in variables:
        del os.environ[name]
    shown = [f"{name} ({_host(value)})" if "://" in value else name for name, value in variables.items()]
    if shown:
        advice = "for servers elsewhere choose a home without a stack (--home DIRECTORY)"
        if set(variables) & set(LABEL_STUDIO):
            advice += "; for another Label Studio set both LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
        _note(f"ignored, because {home} has a stack: {', '.join(shown)}; {advice}")


def _label_studio_elsewhere(environment: Mapping[str, str]) -> dict[str, str]:
    """Address and token of a team's own Label Studio; empty unless both are set."""
    values = {name: environment.get(name, "") for name in LABEL_STUDIO}
    return values if all(values.values()) else {}


def _check_elsewhere(home: Path, needed: tuple[Name, ...]) -> None:
    """Check the servers that the environment names. Raises StackError for one that is not named or does not answer."""
    if missing := [name for name in needed if not os.environ.get(ADDRESSES[name])]:
        variables = " and ".join(ADDRESSES[name] for name in missing)
        raise StackError(
            f"{_listed(missing)} (not running) of the stack in {home}: start the servers with `rlhf up`, or set "
            f"{variables} to use servers elsewhere"
        )
    for variable in (*(ADDRESSES[name] for name in needed), *("MLFLOW_REGISTRY_URI",) * ("mlflow" in needed)):
        if os.environ.get(variable):
            check_address(variable)
    with waiting(f"waiting for {addresses(needed)}"):
        rows = stack.status_elsewhere(needed)
    silent = [row for row in rows if not row.health.ok]
    if silent:
        problems = [f"{row.title} at {row.url} ({row.health.problem})" for row in silent]
        variables = " and ".join(ADDRESSES[row.name] for row in silent)
        raise StackError(
            f"{' and '.join(problems)} cannot be used: check {variables}, or unset {variables} and start servers of "
            "your own with `rlhf up`"
        )


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print `what` with the seconds on stderr when the command was silent for two seconds, and again every two seconds;
    after ten seconds only every ten.

    The start of the program and earlier blocks count; a block that takes less than half a second is never worth a line.
    """
    done, started = threading.Event(), time.monotonic()
    silent_since = max(_note_times[-1], psutil.Process().create_time())

    def repeat() -> None:
        rest = SILENT_SECONDS - (time.time() - silent_since)
        pause = max(BRIEF_SECONDS, min(SILENT_SECONDS, rest))  # a clock that was set back must not prolong it
        while not done.wait(pause):
            waited = time.monotonic() - started
            _note(f"{what} ({waited:.0f} s)")
            pause = SILENT_SECONDS if waited < REPEAT_SECONDS else REPEAT_SECONDS

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _note(text: str) -> None:
    _note_times.append(time.time())
    print(f"rlhf: {terminal_text(text)}", file=sys.stderr, flush=True)


def _listed(names: tuple[Name, ...] | list[Name]) -> str:
    return " and ".join(TITLES[name] for name in names)


def _host(url: str) -> str:
    """The host and port of an address, without credentials; "a file" for a store that is no server."""
    after = url.rpartition("@")[2].rpartition("://")[2]
    return re.split(r"[/?#]", after)[0] or "a file"
