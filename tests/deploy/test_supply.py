"""What is installed and released: locks with hashes, an audit that says when it could not look, licences, images."""

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<marker> ; .*?)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")
CLOSED_PORT = "http://127.0.0.1:9/{}"


def script(name: str) -> ModuleType:
    """A script of deploy/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(lock: Path) -> dict[str, list[str]]:
    """The versions of each package in a lock; fails at a line that is neither a pinned package nor a hash."""
    versions: dict[str, list[str]] = {}
    lines = [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := ENTRY.match(line):
            versions.setdefault(canonicalize_name(match["name"]), []).append(match["version"])
            assert HASH.match(following), f"{lock.name}: {line} has no hash"
        else:
            assert HASH.match(line), f"{lock.name}: {line!r} is neither NAME==VERSION nor a hash"
    return versions


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_has_hashes(lock: Path) -> None:
    assert entries(lock)


def test_the_lock_has_every_dependency_of_the_package_and_what_was_tested() -> None:
    locked = entries(ROOT / "requirements.lock") | entries(ROOT / "requirements-torch.lock")
    for line in requires("rlhf-flows") or []:
        requirement = Requirement(line)
        versions = locked[canonicalize_name(requirement.name)]
        assert any(one in requirement.specifier for one in versions), f"{line} does not admit {versions}"
    for name in ("prefect", "mlflow", "transformers", "trl", "torch", "label-studio-sdk", "pydantic"):
        assert version(name).partition("+")[0] in locked[name], name


def test_both_builds_of_torch_are_the_same_release() -> None:
    (cpu,) = entries(ROOT / "requirements-torch-cpu.lock")["torch"]
    assert [cpu.removesuffix("+cpu")] == entries(ROOT / "requirements-torch.lock")["torch"]


def test_packages_that_both_locks_name_have_one_version() -> None:
    base, torch = entries(ROOT / "requirements.lock"), entries(ROOT / "requirements-torch.lock")
    assert {name: torch[name] for name in base.keys() & torch.keys()} == {
        name: base[name] for name in base.keys() & torch.keys()
    }


def test_whoever_installs_asks_for_hashes() -> None:
    """Every use of a lock by pip, in the Makefile and the Dockerfiles."""
    makefile = (ROOT / "Makefile").read_text()
    assert "LOCKED := $(PIP) --require-hashes -r" in makefile
    for path in (ROOT / "Makefile", *(ROOT / "deploy").glob("Dockerfile*")):
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            for command in re.split(r"&&|\|\||;", line):
                if re.search(r"pip install|\$\(PIP\)|\$\(LOCKED\)", command) and ".lock" in command:
                    assert "--require-hashes" in command or "$(LOCKED)" in command, f"{path.name}: {command}"


def test_pip_refuses_a_file_whose_hash_is_not_in_the_lock(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tampered"\nversion = "1"\n[tool.setuptools]\npy-modules = []\n'
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "package"]
    subprocess.run(build, check=True, capture_output=True)
    (tmp_path / "lock").write_text(f"tampered==1 --hash=sha256:{'0' * 64}\n")
    target = ["--no-index", "--find-links", tmp_path, "--target", tmp_path / "installed"]
    install = [*pip, "install", "--no-deps", "--require-hashes", *target, "-r", tmp_path / "lock"]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr


def test_an_audit_that_cannot_look_says_so_and_can_be_made_to_fail(capsys: pytest.CaptureFixture[str]) -> None:
    audit = script("audit")
    assert audit.main(["requirements.lock", "--service", CLOSED_PORT]) == 0
    assert "audit: SKIPPED, no package was checked" in capsys.readouterr().out
    assert audit.main(["requirements.lock", "--service", CLOSED_PORT, "--require"]) == 1
    assert "audit: FAILED, no package was checked" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "required"), [("1", True), ("0", False), ("", False)])
def test_a_required_audit(value: str, required: bool) -> None:
    command = ["make", "--dry-run", "audit", f"AUDIT_REQUIRED={value}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("--require " in done.stdout) == required


def test_a_package_that_was_skipped_fails_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip-audit itself ends with 0 after "could not be audited", unless it is strict."""
    (tmp_path / "answer").write_text('{"vulnerabilities": [{"id": "CVE-2014-0012"}]}')
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pip-audit"
    program.write_text('#!/bin/sh\ncase "$*" in *--strict*) exit 1;; esac\n')
    program.chmod(0o755)
    audit = script("audit")
    monkeypatch.setattr(audit, "ENVIRONMENT", tmp_path)
    (tmp_path / "Makefile").write_text(f"{tmp_path}/.ready:\n\ttrue\n")
    monkeypatch.chdir(tmp_path)
    assert audit.main(["requirements.lock", "--service", f"file://{tmp_path}/answer"]) == 1


def test_a_service_that_knows_no_vulnerability_is_no_service(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text('{"vulnerabilities": []}')
    audit = script("audit")
    assert "no vulnerability of a vulnerable release" in audit.unreachable(f"file://{tmp_path}/answer")
    for answer in ("[]", "null", '{"a"', "", "[" * 200_000, '{"vulnerabilities": null}'):
        (tmp_path / "answer").write_text(answer)
        assert audit.unreachable(f"file://{tmp_path}/answer"), answer[:20]
    (tmp_path / "answer").write_text('{"vulnerabilities": [{"id": "CVE-2014-0012"}]}')
    assert audit.unreachable(f"file://{tmp_path}/answer") == ""


@pytest.mark.parametrize(
    ("licence", "fits"),
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("Apache Software License; MIT License", True),
        ("LGPL-3.0-only", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND AGPL-3.0-only", False),
        ("Server Side Public License", False),
        ("UNKNOWN", False),
    ],
)
def test_licences_fit_or_need_a_review(licence: str, fits: bool) -> None:
    licences = script("licences")
    assert licences.fits(licence) == fits
    package = {"Name": "something", "Version": "1", "License": licence}
    assert licences.unfit([package]) == ([] if fits else [f"something 1: {licence}"])
    assert licences.unfit([{**package, "Name": "Krippendorff"}]) == []


def manifests(directory: Path) -> Path:
    (directory / "k8s").mkdir(parents=True)
    (directory / "Dockerfile").write_text("FROM python:3.11-slim\nRUN true\n")
    (directory / "k8s" / "a.yaml").write_text("spec:\n  image: python:3.11-slim\n  containers: []\n")
    (directory / "compose.yaml").write_text(
        f"a:\n  image: nginx:1.2@sha256:{'b' * 64}\nb:\n  image: rlhf-flows:0.1.0\n"
    )
    return directory


def test_images_without_a_digest_stop_a_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, deploy = script("images"), manifests(tmp_path / "deploy")
    assert images.unpinned(deploy) == ["Dockerfile: python:3.11-slim", "k8s/a.yaml: python:3.11-slim"]
    assert images.main(["--deploy", str(deploy)]) == 1 and images.main(["--deploy", str(deploy), "--warn"]) == 0
    assert "Dockerfile: python:3.11-slim has no digest; `make images-pin`" in capsys.readouterr().out


def test_images_are_pinned_by_what_the_registry_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, deploy = script("images"), manifests(tmp_path / "deploy")
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\ncase "$4" in nginx:1.2) echo sha256:{"c" * 64};; *) echo sha256:{"d" * 64};; esac\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert images.main(["--deploy", str(deploy), "--pin"]) == 0
    assert (deploy / "Dockerfile").read_text() == f"FROM python:3.11-slim@sha256:{'d' * 64}\nRUN true\n"
    assert f"image: nginx:1.2@sha256:{'c' * 64}\n" in (deploy / "compose.yaml").read_text()
    assert "image: rlhf-flows:0.1.0\n" in (deploy / "compose.yaml").read_text()
    assert images.main(["--deploy", str(deploy)]) == 0
    docker.write_text("#!/bin/sh\necho no such thing\n")
    with pytest.raises(ValueError, match="docker reports 'no such thing' as the digest of"):
        images.main(["--deploy", str(deploy), "--pin"])


def test_every_image_of_others_is_seen() -> None:
    """As many references as a plain search finds, so that a new way of naming an image does not slip through."""
    images = script("images")
    text = "\n".join(path.read_text() for path in images.files(ROOT / "deploy"))
    lines = re.findall(r"(?m)^(?:FROM\s|[^#\n]*\bimage:\s).*$", text)
    foreign = [line for line in lines if "rlhf-" not in line]
    assert len(list(images.references(ROOT / "deploy"))) == len(foreign) >= 5
