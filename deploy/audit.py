"""Check pinned packages for known vulnerabilities with `pip-audit` and PyPI's service; run by `make audit`.

If the service cannot be reached, the audit is skipped with a message and exit code 0. `pip-audit` reports packages as
unknown, not as an error, when the service returns no usable data; so the service is first queried for a release with a
vulnerability that has been public for years.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

SERVICE = "https://pypi.org/pypi/{}/json"
KNOWN_VULNERABLE = "jinja2/2.4.1"
TOOL = "pip-audit==2.10.0"
ENVIRONMENT = Path(".venv-audit")
SECONDS = 20.0


def main(locks: list[str]) -> int:
    """Audit the lock files; 0 if no vulnerability is known, or the audit is skipped."""
    if problem := unreachable():
        print(f"audit: SKIPPED, no package was checked ({problem}). Run `make audit` where PyPI can be reached")
        return 0
    program = ENVIRONMENT / "bin" / "pip-audit"
    if not program.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", TOOL], check=True)
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
    codes = [subprocess.run([program, *options, "--requirement", lock]).returncode for lock in locks]
    return max(codes)


def unreachable() -> str:
    """Why the service cannot be used; "" if it reports the vulnerability that it must know."""
    try:
        with urllib.request.urlopen(SERVICE.format(KNOWN_VULNERABLE), timeout=SECONDS) as response:
            release = json.load(response)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"PyPI's service failed: {error}"
    return "" if release.get("vulnerabilities") else "PyPI's service reports no vulnerability of a vulnerable release"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
