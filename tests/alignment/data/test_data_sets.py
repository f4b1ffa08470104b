"""Directories as data sets: texts by the rules of a single file, and names with the wildcards of patterns."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.config.stages import RowSource, TextSource
from alignment.data.readers import read_as, read_documents, to_prompt
from alignment.data.used_columns import SourceNotes
from alignment.errors import DataError
from tests.alignment.tiny_world import write_lines

TEXT = "First,\nstill first.\n\nSecond.\n"


def documents(path: Path) -> tuple[list[str], list[str]]:
    """The documents of a source, and its files that are not read."""
    notes = SourceNotes("corpus")
    good, bad = read_documents(TextSource(path=str(path)), None, notes)
    assert not bad
    return [document.text for document in good], notes.files


@pytest.mark.parametrize("ending", [".txt", ".md", ".md.gz"])
def test_a_directory_of_texts_has_the_documents_of_its_files(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "texts" / f"a{ending}"
    file.parent.mkdir()
    file.write_bytes(gzip.compress(TEXT.encode()) if ending.endswith(".gz") else TEXT.encode())
    expected = ["First,\nstill first.", "Second.\n"]
    assert documents(file)[0] == documents(file.parent)[0] == expected
    (file.parent / "below").mkdir()
    (file.parent / "below" / "b.txt").write_text("Third.")
    (file.parent / "note.log").write_text("no text")
    texts, unread = documents(file.parent)
    assert sorted(texts) == sorted([*expected, "Third."]) and unread == ["note.log"]


def test_markdown_beside_rows_and_a_readme_are_named_as_unread(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A text.")
    (tmp_path / "README.md").write_text("What this is.")
    assert documents(tmp_path) == (["A text."], ["README.md"])
    write_lines(tmp_path / "rows.jsonl", [{"text": "A row."}])
    assert documents(tmp_path) == (["A row."], ["a.md"])


def test_a_split_of_texts(tmp_path: Path) -> None:
    for name in ("train.md", "test.md"):
        (tmp_path / name).write_text(name)
    assert documents(tmp_path) == (["train.md"], ["test.md"])


@pytest.mark.parametrize("name", ["my[1]data", "all*", "what?", "[ab", "[!a]"])
@pytest.mark.parametrize("split", ["", "train", "train[:1]"])
def test_wildcards_in_the_name_of_a_directory(tmp_path: Path, name: str, split: str) -> None:
    path = tmp_path / name / "below[2]" / "train[0].jsonl"
    path.parent.mkdir(parents=True)
    (tmp_path / name / ".git").mkdir()
    path.write_text(json.dumps({"prompt": "Q?"}) + "\n")
    (tmp_path / "all").mkdir()
    write_lines(tmp_path / "all" / "train.jsonl", [{"prompt": "another"}])
    good, bad = read_as(RowSource(path=str(tmp_path / name), split=split), to_prompt, None)
    assert [prompt.text for prompt in good] == ["Q?"] and not bad


def test_a_pointer_of_git_lfs_in_a_directory_is_named(tmp_path: Path) -> None:
    for name in ("train.parquet", "train.md"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 9\n")
        with pytest.raises(DataError, match=rf"{name}: the file is a Git LFS pointer"):
            documents(folder)


@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet"])
def test_shards_that_datatrove_wrote_are_a_source(tmp_path: Path, ending: str) -> None:
    """One file for each task, named by its rank, with the columns of its documents."""
    rows = [{"text": f"Document {n}.", "id": f"a/{n}", "metadata": {"url": f"u{n}"}} for n in range(4)]
    for rank, part in enumerate((rows[:3], rows[3:])):
        path = tmp_path / f"{rank:05d}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(part), path)
        else:
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in part).encode()))
    notes = SourceNotes("corpus")
    good, bad = read_documents(TextSource(path=str(tmp_path)), None, notes)
    assert [document.text for document in good] == [row["text"] for row in rows] and not bad
    assert set(notes.unread) == {"id", "metadata"}
