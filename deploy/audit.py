"""Check pinned packages for known vulnerabilities with `pip-audit` and PyPI's service; run by `make audit`.

If the service cannot be reached, no package is checked: a message says so, and the exit code is 0, or 1 with
`--require`. `pip-audit` reports packages as unknown when the service returns no usable data; so the service is first
queried for a release with a vulnerability that has been public for years, and then a package that `pip-audit` skips is
an error (`--strict`).
"""

import argparse
import json
import subprocess
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

SERVICE = "https://pypi.org/pypi/{}/json"
KNOWN_VULNERABLE = "jinja2/2.4.1"
ENVIRONMENT = Path(".venv-release")
SECONDS = 20.0
LONGEST = 10_000_000  # bytes of an answer; that of the release asked for has some 20,000


def main(arguments: list[str]) -> int:
    """Audit lock files: 0 if no vulnerability is known, or if nothing could be checked and `--require` is absent."""
    parser = argparse.ArgumentParser(description="Check pinned packages for known vulnerabilities.")
    parser.add_argument("locks", nargs="+")
    parser.add_argument("--require", action="store_true", help="fail if the service cannot be reached")
    parser.add_argument("--service", default=SERVICE, help="address of a release's data, with {} for NAME/VERSION")
    options = parser.parse_args(arguments)
    if problem := unreachable(options.service):
        outcome = "FAILED" if options.require else "SKIPPED"
        print(f"audit: {outcome}, no package was checked ({problem}). Run `make audit` where PyPI can be reached")
        return int(options.require)
    subprocess.run(["make", "--no-print-directory", f"{ENVIRONMENT}/.ready"], check=True)
    command = [ENVIRONMENT / "bin" / "pip-audit", "--no-deps", "--disable-pip", "--strict", "--progress-spinner", "off"]
    return max(subprocess.run([*command, "--requirement", lock]).returncode for lock in options.locks)


def unreachable(service: str) -> str:
    """Why the service cannot be used; "" if it reports the vulnerability that it must know."""
    try:
        with urllib.request.urlopen(service.format(KNOWN_VULNERABLE), timeout=SECONDS) as response:
            release = json.loads(response.read(LONGEST))
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        return f"PyPI's service failed: {type(error).__name__}: {error}"
    if isinstance(release, dict) and release.get("vulnerabilities"):
        return ""
    return "PyPI's service reports no vulnerability of a vulnerable release"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
