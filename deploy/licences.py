"""List the licences of installed packages as CSV and refuse those that do not fit Apache-2.0; run by `make release`.

`pip-licenses` reads them from the packages' metadata. Permissive licences fit. So do those of libraries that are used
unmodified and not copied into this package: MPL and LGPL. Anything else needs an entry in REVIEWED, with a reason.
"""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PERMISSIVE = {
    *("apache", "apache 2.0 license", "apache software license", "apache-2.0", "apache-2.0 with llvm-exception"),
    *("3-clause bsd license", "bsd 3-clause", "bsd license", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "0bsd"),
    *("isc", "isc license (iscl)", "mit", "mit license", "mit-0", "mit-cmu", "zlib", "the unlicense (unlicense)"),
    *("cnri-python", "psf-2.0", "python software foundation license", "tcl"),
}
LIBRARIES = {"lgpl-3.0-only", "mozilla public license 2.0 (mpl 2.0)", "mpl-2.0"}
REVIEWED: Mapping[str, str] = {
    "huey": "MIT: its LICENSE file; the metadata name none",
    "krippendorff": "GPL-3.0-or-later: only tests import it, to compare with; it is no dependency of the package",
    "label-studio-sdk": "Apache-2.0: its LICENSE file; the metadata name none",
    "skops": "MIT: its LICENSE file; the metadata name none",
    "text-unidecode": "Artistic License: a choice beside the GPL; python-slugify (Prefect) imports it unmodified",
}


def fits(licence: str) -> bool:
    """Whether every part of a licence expression is accepted."""
    parts = re.split(r"\s*;\s*|\s+(?:AND|OR)\s+", re.sub(r"\((?=[^)]* OR )|(?<=MIT)\)", "", licence))
    return all(part.lower() in PERMISSIVE | LIBRARIES for part in parts)


def unfit(packages: Sequence[Mapping[str, str]]) -> list[str]:
    """The packages whose licence needs a review, with the licence."""
    return [
        f"{package['Name']} {package['Version']}: {package['License']}"
        for package in packages
        if not fits(package["License"]) and package["Name"].lower() not in REVIEWED
    ]


def installed(program: str, environment: Path) -> list[dict[str, str]]:
    """The packages of an environment, as `pip-licenses` reports them."""
    command = [
        program,
        "--python",
        str(environment / "bin" / "python"),
        "--from=mixed",
        "--format=json",
        "--with-system",
    ]
    rows: list[dict[str, str]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return rows


def main(program: str, environments: Sequence[str]) -> int:
    """Write the packages of all environments to stdout; 1 if the licence of one does not fit."""
    packages = [(name, package) for name in environments for package in installed(program, Path(name))]
    writer = csv.writer(sys.stdout)
    writer.writerow(["environment", "package", "version", "licence", "reviewed"])
    for name, package in packages:
        reviewed = REVIEWED.get(package["Name"].lower(), "")
        writer.writerow([name, package["Name"], package["Version"], package["License"], reviewed])
    problems = unfit([package for _, package in packages])
    for problem in dict.fromkeys(problems):
        print(f"licences: {problem} is not known to fit Apache-2.0: replace the package, or review it", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
