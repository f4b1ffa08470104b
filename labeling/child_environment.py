"""The environment of a child process: the variables that it needs, and no secrets of others.

A child with much input from outside (a server) or none of our code (a program) gets an allow-list. A worker runs our
code with the user's settings for libraries and hardware, so it gets all variables but secrets that no stage needs.
Training in several processes gets all variables: it is the calling process, several times.
"""

import re
from collections.abc import Mapping
from typing import Literal

Child = Literal["program", "database-client", "artifact-server", "worker", "training"]

BASIC = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR", "TEMP", "TMP", "TZ", "LANG", "LANGUAGE"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LOCALE_ARCHIVE", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY"),
    *("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONDONTWRITEBYTECODE"),
}
BASIC_PREFIXES = ("LC_", "XDG_", "OMP_", "OPENBLAS_", "MKL_")
STORES = ("AWS_", "AZURE_", "GOOGLE_")  # accounts of artifact stores
ALLOWED: Mapping[Child, tuple[str, ...]] = {
    "program": BASIC_PREFIXES,
    "database-client": (*BASIC_PREFIXES, "PGSSL"),
    "artifact-server": (*BASIC_PREFIXES, *STORES),
}
HOOKS = {
    *("LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "GIT_SSH_COMMAND", "BASH_ENV", "ENV"),
    *("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONHOME", "PYTHONBREAKPOINT", "PYTHONWARNINGS"),
}
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRETS?|PASSWORD|PASSWD|PASS|PW|CREDENTIALS?|AUTH|COOKIE|DSN|API_?KEY|KEY|PAT)(_|$)|_PWD$|APIKEY$",
    re.I,
)
CREDENTIALS_IN_ADDRESS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
WORKER_SECRETS = ("HF_", "HUGGING_FACE_", "WANDB_", *STORES)
WORKER_VARIABLES = "RLHF_WORKER_VARIABLES"  # names of further variables with secrets that the workers pass on


def child_environment(child: Child, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` that a child gets; the caller adds those that it sets itself."""
    if child == "training":
        return dict(environment)
    if child == "worker":
        names = environment.get(WORKER_VARIABLES, "").replace(",", " ").split()
        return {name: value for name, value in environment.items() if name in names or _for_worker(name, value)}
    prefixes = ALLOWED[child]
    return {name: value for name, value in environment.items() if name in BASIC or name.startswith(prefixes)}


def _for_worker(name: str, value: str) -> bool:
    if name in HOOKS:
        return False
    if name in BASIC or name.startswith(WORKER_SECRETS):
        return True
    return not SECRET.search(name) and not CREDENTIALS_IN_ADDRESS.search(value)
