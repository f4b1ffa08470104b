"""Keys identify inputs, digests identify outputs, and outputs appear atomically."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.artifacts import (
    Artifact,
    canonical,
    content_digest,
    directory_digest,
    fingerprint,
    publish,
    stage_key,
    write_json,
)
from alignment.config.stages import SFTConfig, TokenizerConfig
from alignment.errors import ArtifactError, DataError


def key(**changes: object) -> str:
    values: dict[str, object] = {
        "version": 1,
        "config": SFTConfig(),
        "inputs": {"base": "a", "data": "b"},
        "file_digests": ["x"],
        "seed": 0,
    }
    stage = str(changes.pop("stage", "sft"))
    return stage_key(stage, **(values | changes))  # type: ignore[arg-type]


def test_a_fingerprint_is_the_hash_of_canonical_json() -> None:
    assert fingerprint({"b": 1, "a": [True, None]}) == hashlib.sha256(b'{"a":[true,null],"b":1}').hexdigest()


def test_the_order_of_names_does_not_matter_and_that_of_lists_does() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "reward"},
        {"version": 2},
        {"config": SFTConfig(epochs=4)},
        {"inputs": {"base": "a", "data": "c"}},
        {"inputs": {"base": "b", "data": "a"}},
        {"file_digests": ["y"]},
        {"file_digests": []},
        {"seed": 1},
    ],
)
def test_everything_that_goes_in_changes_the_key(change: dict[str, object]) -> None:
    assert key(**change) != key()


def test_a_default_and_the_same_value_given_have_one_key() -> None:
    assert key(config=SFTConfig(epochs=3)) == key(config=SFTConfig())


def test_a_key_is_the_same_in_another_process() -> None:
    code = "from alignment.artifacts import fingerprint; print(fingerprint({'b': 0.1, 'a': ['é', None]}))"
    seeded = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=seeded)
    assert told.stdout.strip() == fingerprint({"a": ["é", None], "b": 0.1})


@pytest.mark.parametrize(
    "value", [{1, 2}, float("nan"), float("inf"), lambda: 0, object(), Path("x"), {1: 2}, b"x", TokenizerConfig]
)
def test_values_without_a_stable_form_are_refused(value: object) -> None:
    with pytest.raises(ArtifactError, match="cannot be part of a key"):
        canonical({"nested": [value]})


def test_a_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    before = directory_digest(tmp_path)
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    renamed = directory_digest(tmp_path)
    (tmp_path / "sub" / "b").write_text("2")
    assert len({before, renamed, directory_digest(tmp_path)}) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        content_digest(tmp_path / "nothing.jsonl")


def test_publishing_replaces_the_whole_directory(tmp_path: Path) -> None:
    work, final = tmp_path / "x.partial", tmp_path / "out" / "x"
    final.mkdir(parents=True)
    (final / "old").write_text("old")
    work.mkdir()
    (work / "new").write_text("new")
    publish(work, final)
    assert [path.name for path in final.parent.rglob("*")] == ["x", "new"]
    assert not work.exists()


def test_an_artifact_names_a_lost_file_and_reads_its_figures(tmp_path: Path) -> None:
    artifact = Artifact(stage="sft", key="k", run_id="r", path=tmp_path, digest="d")
    with pytest.raises(ArtifactError, match=r"stage 'sft' has no model"):
        artifact.file("model")
    with pytest.raises(ArtifactError, match=r"result\.json cannot be read"):
        artifact.result()
    write_json(tmp_path / "result.json", {"loss": 1.5})
    assert artifact.result() == {"loss": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
