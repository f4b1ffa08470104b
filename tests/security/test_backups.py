"""Backups that were crafted or changed write nothing, wherever they say; one of ours comes back whole."""

import json
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignment.artifacts import file_digest
from alignment.errors import PathError
from alignment.paths import path_below
from flows.cli.main import app
from flows.operations import backup, manifest, restore
from flows.stack import credentials, stack, state
from flows.stack.processes import StackError
from labeling.store.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home as servers leave it, without servers."""
    home = tmp_path / "home"
    (home / "artifacts" / "sft-1").mkdir(parents=True)
    credentials.ensure(home)
    state.write(home, state.State())
    Store(home / "annotations.db").close()
    (home / "artifacts" / "sft-1" / "text.txt").write_text("an output\n")
    (home / "artifacts" / "newest").symlink_to("sft-1")
    (home / "logs").mkdir()
    (home / "logs" / "mlflow.log").write_text("a line")
    return home


@pytest.fixture
def kept(home: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    backup.backup(tmp_path / "kept", home)
    return tmp_path / "kept"


def content(root: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_backup_comes_back_whole_with_its_key(home: Path, kept: Path, tmp_path: Path) -> None:
    new, key = tmp_path / "new", home / manifest.KEY_FILE
    restore.restore(kept, new, key=key)
    left_behind = {"stack.json", "logs/mlflow.log", "annotations.db"}
    assert {name: text for name, text in content(new).items() if name not in left_behind} == {
        name: text for name, text in content(home).items() if name not in left_behind and name != "stack.lock"
    }
    assert (new / "artifacts" / "newest").readlink() == Path("sft-1")
    assert Store(new / "annotations.db").projects() == []
    for name in ("credentials.json", manifest.KEY_FILE):
        assert stat.S_IMODE((new / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(new.stat().st_mode) == 0o700 and not list(tmp_path.glob("*.restoring"))
    assert not (kept / "home" / manifest.KEY_FILE).exists()


def test_the_key_is_asked_for_and_the_next_step_is_named(home: Path, kept: Path, tmp_path: Path) -> None:
    told = {"RLHF_HOME": str(tmp_path / "new")}
    done = CliRunner().invoke(app, ["restore", str(kept)], env=told)
    assert isinstance(done.exception, StackError)
    assert "--key FILE" in str(done.exception) and "--trust" in str(done.exception)
    done = CliRunner().invoke(app, ["restore", str(kept), "--trust"], env=told)
    assert done.exit_code == 0 and "not checked who made this backup" in done.output
    assert not (tmp_path / "new" / manifest.KEY_FILE).exists()
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "again")], env={"RLHF_HOME": str(home)})
    assert done.exit_code == 0 and f"{home / manifest.KEY_FILE} elsewhere" in done.output.replace("\n", " ")


# --- crafted backups --------------------------------------------------------------------------------------------------

Craft = Callable[[Path, dict[str, Any]], None]
EVIL = "evil\n"


def named(name: str) -> Craft:
    """A file of this name in the manifest; the content is where the name leads, so that the digest fits."""

    def craft(kept: Path, values: dict[str, Any]) -> None:
        (kept / "evil").write_text(EVIL)
        values["files"][name] = file_digest(kept / "evil")
        with suppress(OSError, ValueError):  # a name that no file can have
            path = kept / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (kept / "evil").rename(path)

    return craft


def linked(links: dict[str, str], file: str = "") -> Craft:
    """Links of a home, and a file that would be written through one of them."""

    def craft(kept: Path, values: dict[str, Any]) -> None:
        values["links"] |= links
        if file:
            named(file)(kept, values)

    return craft


def replaced(how: Callable[[Path], None]) -> Craft:
    """The file of the backup is replaced by something else."""

    def craft(kept: Path, values: dict[str, Any]) -> None:
        path = kept / "home" / "artifacts" / "sft-1" / "text.txt"
        path.unlink()
        how(path)

    return craft


def changed(**fields: Any) -> Craft:
    """Other fields of the manifest."""
    return lambda kept, values: values.update(fields)


def larger(kept: Path, values: dict[str, Any]) -> None:
    """A file of a terabyte, with no blocks on the disk, that the manifest calls small."""
    with (kept / "home" / "annotations.db").open("r+b") as file:
        file.truncate(1 << 40)


def as_large_as_it_says(kept: Path, values: dict[str, Any]) -> None:
    """The same, called by its size."""
    larger(kept, values)
    values["sizes"]["home/annotations.db"] = 1 << 40


def same_size(kept: Path, values: dict[str, Any]) -> None:
    """Another content of the same size."""
    path = kept / "home" / "artifacts" / "sft-1" / "text.txt"
    path.write_text("An output\n")


OUTSIDE = "/tmp/rlhf-evil"
CRAFTED: dict[str, Craft] = {
    "an absolute name": named(f"home/{OUTSIDE}"),
    "an absolute name at the top": named(OUTSIDE),
    "up": named("home/../../evil"),
    "up in the middle": named("home/artifacts/../../../evil"),
    "up by backslashes": named("home\\..\\..\\evil"),
    "backslashes below the home": named("home/a\\..\\..\\evil"),
    "a dot": named("home/./evil"),
    "an empty part": named("home//evil"),
    "no name": named(""),
    "NUL": named("home/evil\0.txt"),
    "half a character": named("home/evil\ud800"),
    "an escape sequence": named("home/\x1b]0;evil\x07"),
    "a name of 300 characters": named("home/" + "e" * 300),
    "a name of 60,000 parts": named("home/" + "a/" * 60_000 + "b"),
    "a link of 60,000 parts": linked({"out": "a/" * 60_000 + "b"}),
    "beside the home": named("evil"),
    "a dump that is none of ours": named("databases/evil.dump"),
    "the process of a server": named("home/stack.json"),
    "the configuration of PostgreSQL": named("home/postgres/data/postgresql.auto.conf"),
    "the key": named("home/backup.key"),
    "a lock": named("home/locks/evil"),
    "a file as a directory": named("home/artifacts/sft-1/text.txt/evil"),
    "a link to elsewhere": linked({"out": OUTSIDE}),
    "a link upwards": linked({"out": "../.."}),
    "a link through another": linked({"artifacts/a/b/up": "../..", "out": "artifacts/a/b/up/../.."}),
    "a link that a file is written through": linked({"artifacts/out": ".."}, "home/artifacts/out/evil"),
    "a link in place of a file": linked({"artifacts/sft-1/text.txt": "../../credentials.json"}),
    "a link at another name": linked({"../out": "home"}),
    "a link in a backup's directory": replaced(lambda path: path.symlink_to("/etc/passwd")),
    "a pipe": replaced(os.mkfifo),
    "a directory in place of a file": replaced(lambda path: path.mkdir()),
    "a file that is missing": replaced(lambda path: None),
    "another content": same_size,
    "a bomb": larger,
    "a bomb that says so": as_large_as_it_says,
    "a profile that there is not": changed(profile="evil"),
    "production without its databases": changed(profile="production"),
    "a time that is an escape sequence": changed(made_at="\x1b]0;evil\x07"),
    "a number of 5,000 digits": changed(workers=10**4000),
    "a field that there is not": changed(post_install="sh"),
}


def listing(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if not path.is_relative_to(root / "kept")}


@pytest.mark.parametrize("craft", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_backup_writes_nothing_even_if_it_is_trusted(
    home: Path, kept: Path, tmp_path: Path, craft: Craft
) -> None:
    values = json.loads((kept / manifest.FILE).read_text())
    craft(kept, values)
    Path(OUTSIDE).unlink(missing_ok=True)
    before = listing(tmp_path)
    crafted = json.dumps(values)
    signature = manifest.sign(crafted.encode(), manifest.read_key(home / manifest.KEY_FILE))
    (kept / manifest.FILE).write_text(crafted)
    with pytest.raises(StackError) as refused:
        restore.restore(kept, tmp_path / "new", trust=True)
    with pytest.raises(StackError, match="does not fit this key"):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)
    (kept / manifest.SIGNATURE).write_text(signature)  # even by somebody who has the key
    with pytest.raises(StackError):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)
    assert listing(tmp_path) == before and not (tmp_path.parent / "evil").exists() and not Path(OUTSIDE).exists()
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "no readable manifest"),
        ('{"files": {"home/a": "", "home/a": ""}}', "there twice"),
        ('{"workers": ' + "9" * 5000 + "}", "no readable manifest"),
        ("", "no readable manifest"),
    ],
)
def test_a_manifest_that_is_none(kept: Path, tmp_path: Path, text: str, words: str) -> None:
    (kept / manifest.FILE).write_text(text)
    with pytest.raises(StackError, match=words):
        restore.restore(kept, tmp_path / "new", trust=True)


def test_a_small_manifest_takes_no_hours(kept: Path, tmp_path: Path) -> None:
    """A name that is there twice after 200,000 others, and 1,000 names of 2,000 parts."""
    values = json.loads((kept / manifest.FILE).read_text())
    twice = '"home/0": "", ' + ", ".join(f'"home/{n}": ""' for n in range(200_000)) + ', "home/199999": ""'
    (kept / manifest.FILE).write_text(json.dumps(values | {"files": "FILES"}).replace('"FILES"', f"{{{twice}}}"))
    started = time.process_time()
    with pytest.raises(StackError, match=r"'home/0' is there twice"):
        restore.restore(kept, tmp_path / "new", trust=True)
    deep = {f"home/{n}/{'a/' * 2000}b": "0" * 64 for n in range(1000)}
    (kept / manifest.FILE).write_text(json.dumps(values | {"files": deep | {"home/7": "0" * 64}}))
    with pytest.raises(StackError, match=r"'home/7' is both a directory and a file"):
        restore.restore(kept, tmp_path / "new", trust=True)
    assert time.process_time() - started < 15


@pytest.mark.parametrize("name", [manifest.FILE, manifest.SIGNATURE])
def test_a_pipe_in_place_of_a_manifest_does_not_hang(home: Path, kept: Path, tmp_path: Path, name: str) -> None:
    (kept / name).unlink()
    os.mkfifo(kept / name)
    with pytest.raises(StackError, match="not a regular file"):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)


def test_a_file_that_the_manifest_does_not_name(home: Path, kept: Path, tmp_path: Path) -> None:
    (kept / "home" / "label-studio").mkdir()
    (kept / "home" / "label-studio" / "more.sqlite3").touch()
    with pytest.raises(StackError, match=r"more\.sqlite3' is not in manifest"):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)


def test_a_backup_without_a_signature_or_with_the_key_of_another_home(home: Path, kept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    manifest.ensure_key(other)
    with pytest.raises(StackError, match=r"does not fit this key.*backup\.key of the home"):
        restore.restore(kept, tmp_path / "new", key=other)
    (kept / manifest.SIGNATURE).unlink()
    with pytest.raises(StackError, match=r"has no signature.*--trust"):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)
    for bad in (home / "credentials.json", home, tmp_path / "nowhere"):
        with pytest.raises(StackError, match=r"name the file backup\.key"):
            restore.restore(kept, tmp_path / "new", key=bad)


def test_names_that_differ_in_case_never_overwrite_each_other(home: Path, tmp_path: Path) -> None:
    (home / "Credentials.json").write_text("{}")
    (home / "ANNOTATORS.json").write_text("{}")
    backup.backup(tmp_path / "kept", home)
    restore.restore(tmp_path / "kept", tmp_path / "new", trust=True)
    assert (tmp_path / "new" / "credentials.json").read_bytes() == (home / "credentials.json").read_bytes()
    target = tmp_path / "taken"
    target.touch()  # what a file system without upper and lower case shows for the second name
    with pytest.raises(FileExistsError):
        restore._copy(home / "Credentials.json", target, file_digest(home / "Credentials.json"), 2)


def test_modes_of_a_backup_give_no_rights(home: Path, kept: Path, tmp_path: Path) -> None:
    (kept / "home" / "credentials.json").chmod(0o666)
    (kept / "home" / "artifacts" / "sft-1" / "text.txt").chmod(0o6777)
    restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)
    assert stat.S_IMODE((tmp_path / "new" / "credentials.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new" / "artifacts" / "sft-1" / "text.txt").stat().st_mode) == 0o700


# --- what a backup leaves out, encryption, interruptions --------------------------------------------------------------


def test_what_could_not_be_restored_is_left_out_and_named(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "outside").symlink_to(elsewhere)
    (home / "inside").symlink_to(home / "artifacts" / "sft-1")
    (home / "circle").symlink_to("circle")
    (home / "back\\slash").touch()
    Path(os.fsdecode(os.fsencode(home) + b"/half\xff")).touch()
    made = backup.backup(tmp_path / "kept", home)
    assert made.links == {"artifacts/newest": "sft-1", "inside": "artifacts/sft-1"}
    assert [name for name in ("outside", "circle", "back", "half") if name not in " ".join(made.notes)] == []
    restore.restore(tmp_path / "kept", tmp_path / "new", key=home / manifest.KEY_FILE)
    assert (tmp_path / "new" / "inside" / "text.txt").read_text() == "an output\n"


def test_a_damaged_database_does_not_stop_a_backup(home: Path, tmp_path: Path) -> None:
    damaged = home / "mlflow" / "mlflow.db"
    damaged.parent.mkdir()
    with closing(sqlite3.connect(damaged)) as database:
        database.executescript("CREATE TABLE a (b); INSERT INTO a VALUES (randomblob(50000));")
    damaged.write_bytes(damaged.read_bytes()[:100] + b"x" * 8000)
    made = backup.backup(tmp_path / "kept", home)
    assert "home/annotations.db" in made.files and "mlflow.db is damaged" in made.notes[0]
    assert (tmp_path / "kept" / "home" / "mlflow" / "mlflow.db").read_bytes() == damaged.read_bytes()


def test_an_encrypted_backup_shows_nothing_and_needs_its_password(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "artifacts" / "large").write_bytes(os.urandom(2_500_000))  # three blocks
    (home / "artifacts" / "empty").touch()
    monkeypatch.setenv(backup.PASSWORD, "correct horse")
    told = {"RLHF_HOME": str(home)}
    assert CliRunner().invoke(app, ["backup", str(tmp_path / "kept"), "--encrypt"], env=told).exit_code == 0
    secret = credentials.ensure(home).label_studio_token.encode()
    assert not [path for path in content(tmp_path / "kept").values() if secret in path or b"an output" in path]
    for password, words in (("", "set RLHF_BACKUP_PASSWORD"), ("wrong horse", "password is wrong")):
        monkeypatch.setenv(backup.PASSWORD, password)
        with pytest.raises(StackError, match=words):
            restore.restore(tmp_path / "kept", tmp_path / "new", key=home / manifest.KEY_FILE)
        assert not (tmp_path / "new").exists()
    monkeypatch.setenv(backup.PASSWORD, "correct horse")
    restore.restore(tmp_path / "kept", tmp_path / "new", key=home / manifest.KEY_FILE)
    for name in ("artifacts/large", "artifacts/empty", "credentials.json"):
        assert (tmp_path / "new" / name).read_bytes() == (home / name).read_bytes()


def test_blocks_of_an_encrypted_file_cannot_be_exchanged(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the key of the signature, by somebody whom a trusting restore believes."""
    from flows.operations.encryption import BLOCK_BYTES, decrypt_file, encrypt_file

    path, key = tmp_path / "file", os.urandom(32)
    for change in (
        lambda data, size: data[size : 2 * size] + data[:size] + data[2 * size :],
        lambda data, size: data[:size],
        lambda data, size: data + data[:size],
    ):
        path.write_bytes(os.urandom(2 * BLOCK_BYTES + 5))
        encrypt_file(path, key, "home/a")
        path.write_bytes(change(path.read_bytes(), BLOCK_BYTES + 28))
        with pytest.raises(StackError, match="cannot be decrypted"):
            decrypt_file(path, key, "home/a")
        (tmp_path / "file.decrypted").unlink()
    encrypt_file(path, key, "home/a")
    with pytest.raises(StackError, match="cannot be decrypted"):
        decrypt_file(path, key, "home/b")


def test_an_interrupted_restore_leaves_the_home_as_it_was(
    home: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, key = tmp_path / "new", home / manifest.KEY_FILE
    new.mkdir()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(restore, "_complete", interrupt)
        restore.restore(kept, new, key=key)
    assert not list(new.iterdir()) and not list(tmp_path.glob("*.restoring"))
    staging = state.staging(new)
    (staging / "home").mkdir(parents=True)  # of one that was killed
    with pytest.raises(StackError, match="was not finished, and nothing in it was changed"):
        stack.up(new)
    restore.restore(kept, new, key=key)
    assert credentials.read(new) == credentials.read(home) and not staging.exists()


def test_two_restores_at_once(home: Path, kept: Path, tmp_path: Path) -> None:
    staging = state.staging(tmp_path / "new")
    staging.mkdir()
    with restore._locked(staging), pytest.raises(StackError, match="another restore works in"):
        restore.restore(kept, tmp_path / "new", key=home / manifest.KEY_FILE)


def test_a_home_with_the_empty_directories_of_volumes(home: Path, kept: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / "mlflow").mkdir(parents=True)
    restore.restore(kept, new, key=home / manifest.KEY_FILE)
    assert credentials.read(new) == credentials.read(home) and (new / "artifacts" / "newest").is_symlink()
    assert not (new / state.UNFINISHED).exists()
    shutil.rmtree(new)
    new.mkdir()
    (new / "artifacts").symlink_to(tmp_path)
    with pytest.raises(StackError, match="is not empty"):
        restore.restore(kept, new, key=home / manifest.KEY_FILE)


def test_a_path_below_a_root() -> None:
    assert path_below(Path("/root"), "a/b..c/日本.txt") == Path("/root/a/b..c/日本.txt")
    for name in ("..", "a/..", "/a", "", "a//b", "a/", "./a", "a\\b", "a\nb", "a\ud800", "a" * 256):
        with pytest.raises(PathError):
            path_below(Path("/root"), name)
