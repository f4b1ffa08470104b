"""Known faults of pinned packages, by `pip-audit` and PyPI's service; `make audit`.

Without that service nothing can be said, and exactly that is said, with exit code 0: a missing network is no fault of
ours. `pip-audit` reports a package as unknown, and not as an error, where its service answers nothing sensible; so the
service is first asked about a release whose fault has been public for years.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

SERVICE = "https://pypi.org/pypi/{}/json"
KNOWN_FAULT = "jinja2/2.4.1"
TOOL = "pip-audit==2.10.0"
PLACE = Path(".venv-audit")
SECONDS = 20.0


def main(locks: list[str]) -> int:
    """Audit the files; 0 when nothing is known, or nothing can be known."""
    if problem := unreachable():
        print(f"audit: SKIPPED, nothing was looked at ({problem}). Where PyPI can be reached: make audit")
        return 0
    program = PLACE / "bin" / "pip-audit"
    if not program.exists():
        venv.create(PLACE, with_pip=True)
        subprocess.run([PLACE / "bin" / "python", "-m", "pip", "install", "--quiet", TOOL], check=True)
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
    codes = [subprocess.run([program, *options, "--requirement", lock]).returncode for lock in locks]
    return max(codes)


def unreachable() -> str:
    """Why the service cannot be asked; "" when it knows a fault that it must know."""
    try:
        with urllib.request.urlopen(SERVICE.format(KNOWN_FAULT), timeout=SECONDS) as answer:
            told = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"PyPI's service says: {error}"
    return "" if told.get("vulnerabilities") else "PyPI's service knows no fault of a release that has one"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
