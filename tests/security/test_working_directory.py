"""Files in the directory where somebody types `rlhf` decide nothing: a data set of others may bring them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import Settings
from prefect.settings.sources import _get_profiles_path

from flows.prefect_configuration import NOWHERE, READERS
from flows.stack import environment

ROOT = Path(__file__).parents[2]
LOGGING = """
version: 1
disable_existing_loggers: false
formatters: {{evil: {{"()": os.system, command: "touch {mark}"}}}}
handlers: {{}}
loggers: {{}}
"""
FILES = {
    "prefect.toml": 'home = "evil"\nprofiles_path = "evil"\n[logging]\nconfig_path = "logging.yml"\n'
    '[client]\ncustom_headers = {evil = "1"}\n[api]\ntls_insecure_skip_verify = true\n',
    "pyproject.toml": '[tool.prefect]\nhome = "evil"\nprofiles_path = "evil"\n[tool.prefect.logging]\n'
    'config_path = "logging.yml"\n[tool.prefect.api]\ntls_insecure_skip_verify = true\n',
    ".env": "PREFECT_HOME=evil\nPREFECT_PROFILES_PATH=evil\nPREFECT_LOGGING_CONFIG_PATH=logging.yml\n"
    'PREFECT_CLIENT_CUSTOM_HEADERS={"evil": "1"}\nPREFECT_API_TLS_INSECURE_SKIP_VERIFY=true\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_sets_nothing_of_prefect(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings().model_dump(exclude={"home"})
    (tmp_path / name).write_text(FILES[name])
    monkeypatch.chdir(tmp_path)
    assert Settings().model_dump(exclude={"home"}) == before
    assert Settings().home.name != "evil" and _get_profiles_path() == Path(NOWHERE)


def test_the_readers_of_files_are_those_of_this_version() -> None:
    """Else a file would be read again with another version of pydantic-settings, and no error."""
    for owner, method in READERS:
        assert method in vars(owner) and vars(owner)[method].__module__ == "flows.prefect_configuration"


def test_no_process_runs_what_a_file_names(tmp_path: Path) -> None:
    """On import Prefect calls what `logging.yml` names; a worker anywhere is the process that imports most."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    mark = tmp_path / "mark"
    (tmp_path / "logging.yml").write_text(LOGGING.format(mark=mark))
    without = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-P", "-c", "import flows.deployments.worker"]
    done = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not mark.exists(), done.stderr


def test_no_python_that_we_start_imports_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` would; libraries that start Python themselves read the variable."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop("PYTHONSAFEPATH", None)
    environment.prepare()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    for package in ("alignment", "flows", "labeling"):
        for path in (ROOT / package).rglob("*.py"):
            unsafe = re.findall(r'sys\.executable, "-[mc]"', path.read_text(encoding="utf-8"))
            assert not unsafe or path.name == "commands.py", path  # whose Launch.switches have the variable
